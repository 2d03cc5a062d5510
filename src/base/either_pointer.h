// What an object owns in one part of its life and what it owns in another, in the place of one pointer. For
// objects of which there are many: std::variant takes two.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace fairway::base {

// Owns an A, a B, or nothing.
template <typename A, typename B>
class EitherPointer {
 public:
  EitherPointer() = default;
  EitherPointer(const EitherPointer&) = delete;
  EitherPointer& operator=(const EitherPointer&) = delete;
  ~EitherPointer() {
    if (!empty()) Reset();
  }

  // Null: there is none of this kind.
  template <typename T>
  T* Get() const {
    return (reinterpret_cast<uintptr_t>(tagged_) & 1) == kTag<T> ? As<T>() : nullptr;
  }
  // REQUIRES: it is a T, or nothing.
  template <typename T>
  T* As() const {
    return tagged_ != nullptr ? reinterpret_cast<T*>(tagged_ - kTag<T>) : nullptr;
  }
  bool empty() const { return tagged_ == nullptr; }
  // In place of what there was. Null: nothing then.
  template <typename T>
  void Set(std::unique_ptr<T> owned) {
    if (!empty()) Reset();
    if (owned != nullptr) tagged_ = reinterpret_cast<char*>(owned.release()) + kTag<T>;
  }
  template <typename T>
  std::unique_ptr<T> Take() {
    std::unique_ptr<T> taken(Get<T>());
    if (taken != nullptr) tagged_ = nullptr;
    return taken;
  }
  [[gnu::noinline]] void Reset() {
    Take<A>();
    Take<B>();
  }

 private:
  static_assert(!std::is_same_v<A, B>);
  // Which of them, in a bit that addresses have to spare.
  template <typename T>
  static constexpr uintptr_t kTag = std::is_same_v<T, B> ? 1 : 0;

  char* tagged_ = nullptr;
};

}  // namespace fairway::base
