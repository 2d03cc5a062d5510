// Bytes on their way to one socket: small pieces copied together, large ones by reference, written with one
// system call.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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
  // `bytes` must stay until round() has changed. Short ones are copied: false.
  bool Reference(std::string_view bytes);

  // More should wait for the next round.
  bool full() const;
  bool empty() const { return pieces_.empty(); }
  size_t bytes() const { return bytes_; }
  // Grows each time that all bytes have left.
  uint64_t round() const { return round_; }

  Status Flush(SocketStream& stream);

 private:
  void Advance(size_t written);

  struct Piece {
    const char* data;  // null: the next bytes of copied_
    size_t size;
  };
  bool copy_all_;
  std::vector<Piece> pieces_;
  std::string copied_;
  size_t at_ = 0;         // first piece not written
  size_t copied_at_ = 0;  // first byte of copied_ not written
  size_t bytes_ = 0;
  uint64_t round_ = 0;
};

// What one call has yet to send. Short pieces are copied together, bodies are kept by reference.
class AnswerQueue {
 public:
  // `copied` is copied; `body` must outlive the queue's need of it.
  void Append(std::string_view copied, std::string_view body);
  size_t bytes() const { return bytes_; }
  // Moves the next `size` <= bytes() bytes. True: some of them by reference.
  bool MoveTo(OutputQueue& out, size_t size);
  void Drop();

 private:
  struct Piece {
    const char* data;  // null: in copied_ at `offset`
    size_t offset;
    size_t size;
  };
  std::vector<Piece> pieces_;
  std::string copied_;
  size_t at_ = 0;      // first piece not moved whole
  size_t offset_ = 0;  // what of it is moved
  size_t bytes_ = 0;
};

}  // namespace fairway::net
