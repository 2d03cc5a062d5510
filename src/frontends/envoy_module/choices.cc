#include "frontends/envoy_module/choices.h"

#include <cstring>
#include <utility>

#include "base/random.h"

namespace fairway::envoy_module {

namespace {
constexpr size_t kFirstBuckets = 256;
}  // namespace

void Choice::Withdraw() noexcept {
  if (owner_ != nullptr) owner_->Remove(*this);
}

std::string_view Choice::Next() {
  ++asked_;
  const size_t comma = rest_.find(',');
  const std::string_view next = rest_.substr(0, comma);
  rest_.remove_prefix(comma == std::string_view::npos ? rest_.size() : comma + 1);
  return next;
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
      choice->owner_ = nullptr;
    }
  }
}

// Eight bytes at a time through a multiplication and a fold (as in wyhash, Wang Yi 2019): ids are short, and
// this is in each request's way.
uint64_t Choices::IdOf(std::string_view request_id) const {
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

void Choices::Add(Choice& choice, std::string_view request_id, std::string_view list) {
  choice.Withdraw();
  if (size_ == bucket_count_) Grow();
  choice.owner_ = this;
  choice.id_ = IdOf(request_id);
  choice.rest_ = list;
  choice.asked_ = 0;
  Choice*& bucket = BucketOf(choice.id_);
  choice.next_in_bucket_ = bucket;
  bucket = &choice;
  last_ = &choice;
  ++size_;
}

void Choices::Remove(Choice& choice) noexcept {
  if (choice.owner_ != this) return;
  Choice** at = &BucketOf(choice.id_);
  while (*at != &choice) at = &(*at)->next_in_bucket_;
  *at = choice.next_in_bucket_;
  choice.owner_ = nullptr;
  if (last_ == &choice) last_ = nullptr;
  --size_;
}

Choice* Choices::Find(std::string_view request_id) const {
  const uint64_t id = IdOf(request_id);
  if (last_ != nullptr && last_->id_ == id) return last_;
  Choice* choice = BucketOf(id);
  while (choice != nullptr && choice->id_ != id) choice = choice->next_in_bucket_;
  return choice;
}

void Choices::Grow() {
  const size_t old_count = bucket_count_;
  auto old = std::move(buckets_);
  bucket_count_ = old_count * 2;
  buckets_ = std::make_unique<Choice*[]>(bucket_count_);
  for (size_t i = 0; i < old_count; ++i) {
    for (Choice* choice = old[i]; choice != nullptr;) {
      Choice* next = choice->next_in_bucket_;
      Choice*& bucket = BucketOf(choice->id_);
      choice->next_in_bucket_ = bucket;
      bucket = choice;
      choice = next;
    }
  }
}

}  // namespace fairway::envoy_module
