// What pickers are measured against.
#include <algorithm>
#include <limits>

#include "base/random.h"
#include "replay/picker.h"

namespace fairway::replay {

namespace {

// What all of them do: know the members, count their own open requests, go on to the next member where one
// refuses.
class Baseline : public Picker {
 public:
  explicit Baseline(const PickerSetup& setup)
      : random_(setup.seed), truth_(setup.truth), open_(setup.fleet.servers.size()) {}

  Picked Pick(uint32_t slot, const Asked& asked) final {
    if (members_.empty()) return {};
    const size_t first = Choose(asked);
    Picked picked{.kind = Picked::Kind::kPicked};
    while (picked.count < std::min<size_t>(3, members_.size())) {
      picked.servers[picked.count] = members_[(first + picked.count) % members_.size()];
      ++picked.count;
    }
    if (at_.size() <= slot) at_.resize(slot + 1);
    at_[slot] = picked.servers[0];
    ++open_[at_[slot]];
    return picked;
  }
  void OnHeaders(uint32_t slot, int /*status*/, uint32_t server, bool detach) final {
    --open_[at_[slot]];
    at_[slot] = server;
    if (!detach) ++open_[server];
  }
  void OnFirstToken(uint32_t /*slot*/) final {}
  void OnEnd(uint32_t slot, const payload::Usage& /*usage*/) final { --open_[at_[slot]]; }
  void OnAbort(uint32_t slot) final { --open_[at_[slot]]; }
  void SetMembers(const std::vector<bool>& members) final {
    members_.clear();
    for (uint32_t i = 0; i < members.size(); ++i)
      if (members[i]) members_.push_back(i);
  }

 protected:
  // A place in members_, which is not empty.
  virtual size_t Choose(const Asked& asked) = 0;

  // Of the places for which `value` is least one at random.
  template <typename Value>
  size_t Least(Value value) {
    auto least = value(0);
    size_t chosen = 0;
    uint64_t equal = 1;
    for (size_t i = 1; i < members_.size(); ++i) {
      const auto its = value(i);
      if (its < least) {
        least = its;
        chosen = i;
        equal = 1;
      } else if (its == least && random_.Below(++equal) == 0) {
        chosen = i;
      }
    }
    return chosen;
  }
  uint32_t open(size_t place) const { return open_[members_[place]]; }

  base::Random random_;
  const Truth& truth_;
  std::vector<uint32_t> members_;

 private:
  std::vector<uint32_t> open_;  // by server
  std::vector<uint32_t> at_;    // by slot
};

class RoundRobin final : public Baseline {
 public:
  explicit RoundRobin(const PickerSetup& setup)
      : Baseline(setup), turn_(random_.Below(setup.fleet.servers.size())) {}
  size_t Choose(const Asked& /*asked*/) override { return turn_++ % members_.size(); }

 private:
  size_t turn_;  // begins anywhere: replicas do not go in step
};

class RandomChoice final : public Baseline {
 public:
  using Baseline::Baseline;
  size_t Choose(const Asked& /*asked*/) override { return random_.Below(members_.size()); }
};

class LeastRequests final : public Baseline {
 public:
  using Baseline::Baseline;
  size_t Choose(const Asked& /*asked*/) override {
    return Least([this](size_t place) { return open(place); });
  }
};

class PowerOfTwo final : public Baseline {
 public:
  using Baseline::Baseline;
  size_t Choose(const Asked& /*asked*/) override {
    const size_t a = random_.Below(members_.size());
    if (members_.size() == 1) return a;
    const size_t b = (a + 1 + random_.Below(members_.size() - 1)) % members_.size();
    return open(b) < open(a) ? b : a;
  }
};

class Oracle final : public Baseline {
 public:
  using Baseline::Baseline;
  size_t Choose(const Asked& asked) override {
    return Least([&](size_t place) { return truth_.FirstToken(members_[place], asked.request); });
  }
};

}  // namespace

std::unique_ptr<Picker> MakeRoundRobin(const Policy& /*policy*/, const PickerSetup& setup) {
  return std::make_unique<RoundRobin>(setup);
}
std::unique_ptr<Picker> MakeRandom(const Policy& /*policy*/, const PickerSetup& setup) {
  return std::make_unique<RandomChoice>(setup);
}
std::unique_ptr<Picker> MakeLeastRequests(const Policy& /*policy*/, const PickerSetup& setup) {
  return std::make_unique<LeastRequests>(setup);
}
std::unique_ptr<Picker> MakePowerOfTwo(const Policy& /*policy*/, const PickerSetup& setup) {
  return std::make_unique<PowerOfTwo>(setup);
}
std::unique_ptr<Picker> MakeOracle(const Policy& /*policy*/, const PickerSetup& setup) {
  return std::make_unique<Oracle>(setup);
}

}  // namespace fairway::replay
