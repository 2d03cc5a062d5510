// What the picker chose for requests whose hosts Envoy is about to ask the module's own load-balancing policy
// for. So neither the first choice nor the list for retries has to be told to Envoy per request: an override
// host and dynamic metadata cost it two microseconds and some hundred bytes each (docs/benchmarks.md).
//
// A request is found again by the hash of its x-request-id, which is all that a policy sees of it cheaply.
// Ids need not be unique (clients hand theirs on): see Find.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace fairway::envoy_module {

class Choices;

// One request's hosts, in their order. Owned by its stream, which removes it from Choices before it ends; not
// to be moved while it is in them. Each open stream has one: no field without need.
class Choice {
 public:
  Choice() = default;
  Choice(const Choice&) = delete;
  Choice& operator=(const Choice&) = delete;

  // Is it in Choices? No longer, too, once they ended with their thread.
  bool listed() const { return at_ != nullptr; }

  // The next "ip:port" of the list: the first choice, then with each retry the one after it; "" when there is
  // none left.
  std::string_view Next();
  // How often Next was called, up to 255: once when the first host was taken.
  uint32_t asked() const { return asked_; }
  // Another request has, or had, the same id: what was asked for by the id alone may have been either.
  bool shared() const { return shared_; }

 private:
  friend class Choices;
  std::string_view list() const { return {list_, list_size_}; }
  std::string_view first() const { return list().substr(0, list().find(',')); }

  // What points to it. With one id for all of a client's requests a chain may be as long as it likes: nobody
  // is to be looked for in it.
  Choice** at_ = nullptr;
  Choice* next_in_bucket_ = nullptr;
  uint64_t id_ = 0;
  const char* list_ = nullptr;
  uint16_t list_size_ = 0;
  uint8_t asked_ = 0;
  bool shared_ = false;
};

// Of one of Envoy's worker threads, which alone uses it: its streams' choices. Memory: a pointer for each,
// grown by doubling.
class Choices {
 public:
  // The filter and the policy are made apart, and have nothing in common but their thread. Keep the reference
  // where it is needed per request: finding the thread's own memory costs a call.
  static Choices& OfThisThread();

  Choices();
  ~Choices();
  Choices(const Choices&) = delete;
  Choices& operator=(const Choices&) = delete;

  // `list`: "ip:port" joined by ",", which stays as long as `choice` is in; at most 65535 bytes. One that is
  // in already is removed first.
  void Add(Choice& choice, std::string_view request_id, std::string_view list);
  // REQUIRES: it is in no other Choices. Nothing happens where it is in none.
  void Remove(Choice& choice) noexcept {
    if (choice.listed()) Unlink(choice);
  }
  // Null: no such request. Of several with the same id the newest; they are shared(), and
  // Find(request_id, first) tells them apart.
  Choice* Find(std::string_view request_id) const;
  // The newest whose list begins with `first`, which is what the filter told the request by header.
  Choice* Find(std::string_view request_id, std::string_view first) const;
  // Envoy asks for the host of what was added last, before any other request runs on this thread.
  void ExpectLast() { expected_ = true; }
  // That one, once; null where nothing is expected.
  Choice* TakeExpected() {
    if (!expected_) return nullptr;
    expected_ = false;
    return last_;
  }
  size_t size() const { return size_; }

 private:
  void Unlink(Choice& choice) noexcept;
  uint64_t IdOf(std::string_view request_id) const;
  Choice*& BucketOf(uint64_t id) const noexcept { return buckets_[id & (bucket_count_ - 1)]; }
  void Grow();

  uint64_t seed_ = 0;  // ids are the clients' to make up: which of them share a bucket is not
  bool expected_ = false;
  Choice* last_ = nullptr;  // added last: Envoy asks for it as a rule before the next one comes
  std::unique_ptr<Choice*[]> buckets_;
  size_t bucket_count_;  // a power of two
  size_t size_ = 0;
};

}  // namespace fairway::envoy_module
