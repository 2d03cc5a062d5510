// Bytes that stay as long as anybody holds them. What is queued to be sent by reference is one of these, so
// that nobody can free it too early: the queue holds it, whatever becomes of the one who made it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace fairway::net {

// A plain value: a part of a block that never changes; copies share the block. An own block may be derived,
// to learn in its destructor that nobody needs it any more.
class SharedBytes {
 public:
  struct Block {
    explicit Block(std::string its_bytes) : bytes(std::move(its_bytes)) {}
    virtual ~Block() = default;
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    const std::string bytes;
  };

  SharedBytes() = default;
  explicit SharedBytes(std::string bytes) : SharedBytes(std::make_shared<const Block>(std::move(bytes))) {}
  explicit SharedBytes(std::shared_ptr<const Block> block) : block_(std::move(block)), view_(block_->bytes) {}

  std::string_view view() const { return view_; }
  size_t size() const { return view_.size(); }
  bool empty() const { return view_.empty(); }
  // A part of the same block, clamped as substr does it. REQUIRES: offset <= size().
  SharedBytes Slice(size_t offset, size_t size) const {
    SharedBytes part(*this);
    part.view_ = view_.substr(offset, size);
    return part;
  }
  // Null when empty from the start.
  const std::shared_ptr<const Block>& block() const { return block_; }

 private:
  std::shared_ptr<const Block> block_;
  std::string_view view_;
};

}  // namespace fairway::net
