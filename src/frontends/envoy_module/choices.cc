#include "frontends/envoy_module/choices.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/random.h"

namespace fairway::envoy_module {

namespace {
constexpr size_t kFirstBuckets = 256;
}  // namespace

[[gnu::hot]] std::string_view Choice::Next() {
  std::string_view rest = list();
  if (asked_ > 0) [[unlikely]] {  // a retry
    for (uint32_t given = 0; given < asked_ && !rest.empty(); ++given) {
      const size_t end = rest.find(',');
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    }
  }
  if (asked_ < std::numeric_limits<uint8_t>::max()) ++asked_;
  return rest.substr(0, rest.find(','));
}

Choices& Choices::OfThisThread() {
  thread_local Choices choices;
  return choices;
}

// Where the system put us is a secret from clients, which is all that the seed has to be.
Choices::Choices() : buckets_(std::make_unique<Choice*[]>(kFirstBuckets)), bucket_count_(kFirstBuckets) {
  uint64_t state = reinterpret_cast<uintptr_t>(this) ^ reinterpret_cast<uintptr_t>(buckets_.get()) << 20;
  seed_ = base::SplitMix64(state);
}

// Streams that outlive their thread (Envoy at its end) must not come back here.
Choices::~Choices() {
  for (size_t i = 0; i < bucket_count_; ++i) {
    for (Choice* choice = buckets_[i]; choice != nullptr; choice = choice->next_in_bucket_) {
      choice->at_ = nullptr;
    }
  }
}

// Eight bytes at a time through a multiplication and a fold (as in wyhash, Wang Yi 2019): ids are short, and
// this is in each request's way.
[[gnu::hot]] uint64_t Choices::IdOf(std::string_view request_id) const {
  const auto mix = [](uint64_t a) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * 0x9e3779b97f4a7c15ULL;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  const char* at = request_id.data();
  size_t left = request_id.size();
  uint64_t id = seed_ ^ left;
  for (; left >= 8; at += 8, left -= 8) {
    uint64_t word = 0;
    std::memcpy(&word, at, 8);
    id = mix(id ^ word);
  }
  if (left > 0) {
    uint64_t word = 0;
    std::memcpy(&word, at, left);
    id = mix(id ^ word);
  }
  return id;
}

[[gnu::hot]] void Choices::Add(Choice& choice, std::string_view request_id, std::string_view list) {
  Remove(choice);
  if (size_ == bucket_count_) Grow();
  choice.id_ = IdOf(request_id);
  choice.list_ = list.data();
  choice.list_size_ = static_cast<uint16_t>(list.size());
  choice.asked_ = 0;
  choice.shared_ = false;
  Choice*& bucket = BucketOf(choice.id_);
  for (Choice* other = bucket; other != nullptr; other = other->next_in_bucket_) {
    if (other->id_ != choice.id_) continue;
    other->shared_ = choice.shared_ = true;
    break;  // those behind it are shared by it
  }
  choice.at_ = &bucket;
  choice.next_in_bucket_ = bucket;
  if (bucket != nullptr) bucket->at_ = &choice.next_in_bucket_;
  bucket = &choice;
  last_ = &choice;
  expected_ = false;
  ++size_;
}

[[gnu::hot]] void Choices::Unlink(Choice& choice) noexcept {
  *choice.at_ = choice.next_in_bucket_;
  if (choice.next_in_bucket_ != nullptr) choice.next_in_bucket_->at_ = choice.at_;
  choice.at_ = nullptr;
  if (last_ == &choice) last_ = nullptr;
  --size_;
}

[[gnu::hot]] Choice* Choices::Find(std::string_view request_id) const {
  const uint64_t id = IdOf(request_id);
  if (last_ != nullptr && last_->id_ == id) return last_;
  Choice* choice = BucketOf(id);
  while (choice != nullptr && choice->id_ != id) choice = choice->next_in_bucket_;
  return choice;
}

Choice* Choices::Find(std::string_view request_id, std::string_view first) const {
  const uint64_t id = IdOf(request_id);
  Choice* choice = BucketOf(id);
  while (choice != nullptr && (choice->id_ != id || choice->first() != first)) {
    choice = choice->next_in_bucket_;
  }
  return choice;
}

// Chains keep their order, the newest first.
void Choices::Grow() {
  auto grown = std::make_unique<Choice*[]>(bucket_count_ * 2);
  for (size_t i = 0; i < bucket_count_; ++i) {
    Choice** ends[2] = {&grown[i], &grown[i + bucket_count_]};
    for (Choice* choice = buckets_[i]; choice != nullptr;) {
      Choice* next = choice->next_in_bucket_;
      Choice**& end = ends[(choice->id_ & bucket_count_) != 0 ? 1 : 0];
      *end = choice;
      choice->at_ = end;
      choice->next_in_bucket_ = nullptr;
      end = &choice->next_in_bucket_;
      choice = next;
    }
  }
  buckets_ = std::move(grown);
  bucket_count_ *= 2;
}

}  // namespace fairway::envoy_module
