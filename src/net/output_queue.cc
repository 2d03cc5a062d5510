#include "net/output_queue.h"

#include <algorithm>

#include "net/socket_stream.h"

namespace fairway::net {
namespace {

// Enough for the kernel to take at one go, little enough to bound what a slow reader holds here.
constexpr size_t kMaxBytes = 512 << 10;
constexpr size_t kMaxPieces = 256;
constexpr size_t kCopyBelow = 4096;  // an own iovec entry costs more than copying this much
constexpr size_t kMaxKept = 64 << 10;
constexpr size_t kMaxKeptAnswer = 4096;

}  // namespace

void OutputQueue::Copy(std::string_view bytes) {
  if (!pieces_.empty() && pieces_.back().data == nullptr) {
    pieces_.back().size += bytes.size();
  } else {
    pieces_.push_back({nullptr, bytes.size()});
  }
  copied_.append(bytes);
  bytes_ += bytes.size();
}

bool OutputQueue::Reference(std::string_view bytes) {
  if (copy_all_ || bytes.size() <= kCopyBelow) {
    Copy(bytes);
    return false;
  }
  pieces_.push_back({bytes.data(), bytes.size()});
  bytes_ += bytes.size();
  return true;
}

bool OutputQueue::full() const { return bytes_ >= kMaxBytes || pieces_.size() >= kMaxPieces - 8; }

OutputQueue::Status OutputQueue::Flush(SocketStream& stream) {
  while (at_ < pieces_.size()) {
    iovec vector[kMaxPieces];
    size_t count = 0;
    size_t copied = copied_at_;
    for (size_t i = at_; i < pieces_.size() && count < kMaxPieces; ++i, ++count) {
      const Piece& piece = pieces_[i];
      const char* data = piece.data;
      if (data == nullptr) {
        data = copied_.data() + copied;
        copied += piece.size;
      }
      vector[count] = {const_cast<char*>(data), piece.size};
    }
    size_t written = 0;
    switch (stream.Write(vector, count, written)) {
      case SocketStream::Status::kOk:
        Advance(written);
        break;
      case SocketStream::Status::kWantRead:
        return Status::kBlockedOnRead;
      case SocketStream::Status::kWantWrite:
        return Status::kBlocked;
      case SocketStream::Status::kClosed:
      case SocketStream::Status::kFailed:
        return Status::kFailed;
    }
  }
  pieces_.clear();
  if (copied_.capacity() > kMaxKept) {
    std::string().swap(copied_);
  } else {
    copied_.clear();
  }
  at_ = copied_at_ = 0;
  ++round_;
  return Status::kEmpty;
}

void OutputQueue::Advance(size_t written) {
  bytes_ -= written;
  while (written > 0) {
    Piece& piece = pieces_[at_];
    const size_t step = std::min(written, piece.size);
    if (piece.data != nullptr) {
      piece.data += step;
    } else {
      copied_at_ += step;
    }
    piece.size -= step;
    written -= step;
    if (piece.size == 0) ++at_;
  }
}

void AnswerQueue::Append(std::string_view copied, std::string_view body) {
  if (bytes_ == 0) Drop();  // all of it is out: a long stream does not grow
  if (!copied.empty()) {
    if (!pieces_.empty() && pieces_.back().data == nullptr) {
      pieces_.back().size += copied.size();  // copied_ only grows at its end, so the last piece ends there
    } else {
      pieces_.push_back({nullptr, copied_.size(), copied.size()});
    }
    copied_.append(copied);
  }
  if (!body.empty()) pieces_.push_back({body.data(), 0, body.size()});
  bytes_ += copied.size() + body.size();
}

bool AnswerQueue::MoveTo(OutputQueue& out, size_t size) {
  bool referenced = false;
  bytes_ -= size;
  while (size > 0) {
    const Piece& piece = pieces_[at_];
    const size_t step = std::min(size, piece.size - offset_);
    if (piece.data != nullptr) {
      referenced |= out.Reference({piece.data + offset_, step});
    } else {
      out.Copy({copied_.data() + piece.offset + offset_, step});
    }
    size -= step;
    offset_ += step;
    if (offset_ == piece.size) {
      ++at_;
      offset_ = 0;
    }
  }
  return referenced;
}

void AnswerQueue::Drop() {
  pieces_.clear();
  if (copied_.capacity() > kMaxKeptAnswer) {
    std::string().swap(copied_);
  } else {
    copied_.clear();
  }
  at_ = offset_ = bytes_ = 0;
}

}  // namespace fairway::net
