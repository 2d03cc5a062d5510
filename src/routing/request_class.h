// What the requests of one pool, model, target and label set have in common. For the .cc files of this room
// only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "routing/request_series.h"

namespace fairway::routing {

// Lives as long as a RequestClassPointer to it, whatever became of the route that made it: open tickets hold
// one and no texts of their own. Used by one thread.
struct RequestClass {
  uint32_t references = 0;
  bool has_model = false;
  bool rewrites = false;  // the body must name target_model instead of model
  std::shared_ptr<RequestSeries> series;
  std::string pool_key;
  std::string model;  // as the client asked; "" when unknown
  std::string target_model;
};

// Not a std::shared_ptr, whose count is atomic: each request takes one and gives it back.
class RequestClassPointer {
 public:
  RequestClassPointer() = default;
  explicit RequestClassPointer(RequestClass* object) : object_(object) { ++object_->references; }
  RequestClassPointer(const RequestClassPointer& other) : object_(other.object_) {
    if (object_ != nullptr) ++object_->references;
  }
  RequestClassPointer(RequestClassPointer&& other) noexcept
      : object_(std::exchange(other.object_, nullptr)) {}
  RequestClassPointer& operator=(RequestClassPointer other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~RequestClassPointer() {
    if (object_ != nullptr && --object_->references == 0) Delete(object_);
  }
  explicit operator bool() const { return object_ != nullptr; }
  bool only() const { return object_ != nullptr && object_->references == 1; }
  RequestClass* operator->() const { return object_; }

 private:
  [[gnu::noinline, gnu::cold]] static void Delete(RequestClass* object) { delete object; }
  RequestClass* object_ = nullptr;
};

}  // namespace fairway::routing
