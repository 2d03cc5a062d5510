// Bytes on their way to one socket: small pieces copied together, large ones by reference, written with one
// system call.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "net/shared_bytes.h"

namespace fairway::net {

class SocketStream;

// Owned by one connection. It is filled, then drained whole, then filled again.
class OutputQueue {
 public:
  enum class Status {
    kEmpty,
    kBlocked,        // until the socket is writable
    kBlockedOnRead,  // TLS: until it is readable
    kFailed,
  };

  // Copies everything when `copy_all` (TLS reads every byte anyway, and wants long runs).
  explicit OutputQueue(bool copy_all) : copy_all_(copy_all) {}

  void Copy(std::string_view bytes);
  // Holds the bytes until they are written. Short ones are copied.
  void Append(const SharedBytes& bytes);

  // More should wait for the next round.
  bool full() const;
  bool empty() const { return pieces_.empty(); }
  size_t bytes() const { return bytes_; }
  // Memory of the queue's own.
  size_t copied() const { return copied_.size(); }
  // Ever written to the socket.
  uint64_t written() const { return written_; }

  Status Flush(SocketStream& stream);

 private:
  void Advance(size_t written);

  struct Piece {
    const char* data;  // null: the next bytes of copied_
    size_t size;
    std::shared_ptr<const SharedBytes::Block> block;
  };
  bool copy_all_;
  std::vector<Piece> pieces_;
  std::string copied_;
  size_t at_ = 0;         // first piece not written
  size_t copied_at_ = 0;  // first byte of copied_ not written
  size_t bytes_ = 0;
  uint64_t written_ = 0;
};

// What one call has yet to send. Short pieces are copied together, bodies are held by reference.
class AnswerQueue {
 public:
  void Copy(std::string_view bytes);
  void Append(const SharedBytes& bytes);
  size_t bytes() const { return bytes_; }
  // Memory of the queue's own.
  size_t own() const { return copied_.size() + (pieces_.size() - at_) * sizeof(Piece); }
  // Memory that is held by it: the whole of each block of which a byte is still needed.
  size_t pinned() const { return pinned_; }
  // Moves the next `size` <= bytes() bytes.
  void MoveTo(OutputQueue& out, size_t size);
  void Drop();

 private:
  struct Piece {
    size_t size;
    SharedBytes bytes;  // without a block: in copied_
  };
  bool Holds(const SharedBytes::Block* block) const;
  void PopPiece();
  void Compact();

  std::vector<Piece> pieces_;
  std::string copied_;
  size_t at_ = 0;         // first piece not moved whole
  size_t copied_at_ = 0;  // first byte of copied_ not moved
  size_t bytes_ = 0;
  size_t pinned_ = 0;  // capacities of the blocks in pieces_
};

}  // namespace fairway::net
