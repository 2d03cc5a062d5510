#include "net/output_queue.h"

#include <algorithm>
#include <utility>

#include "net/socket_stream.h"

namespace fairway::net {
namespace {

// Enough for the kernel to take at one go, little enough to bound what a slow reader holds here.
constexpr size_t kMaxBytes = 512 << 10;
constexpr size_t kMaxPieces = 256;
constexpr size_t kCopyBelow = 4096;  // an own iovec entry costs more than copying this much
constexpr size_t kMaxKept = 64 << 10;
constexpr size_t kMaxKeptAnswer = 4096;
constexpr size_t kCompactAbove = 16 << 10;

}  // namespace

void OutputQueue::Copy(std::string_view bytes) {
  if (!pieces_.empty() && pieces_.back().data == nullptr) {
    pieces_.back().size += bytes.size();
  } else {
    pieces_.push_back({nullptr, bytes.size(), nullptr});
  }
  copied_.append(bytes);
  bytes_ += bytes.size();
}

void OutputQueue::Append(const SharedBytes& bytes) {
  if (copy_all_ || bytes.size() <= kCopyBelow) return Copy(bytes.view());
  const std::string_view view = bytes.view();
  pieces_.push_back(
      {view.data(), view.size(), bytes.block()});  // NOLINT(bugprone-suspicious-stringview-data-usage)
  bytes_ += bytes.size();
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
  return Status::kEmpty;
}

void OutputQueue::Advance(size_t written) {
  bytes_ -= written;
  written_ += written;
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
    if (piece.size == 0) {
      piece.block.reset();
      ++at_;
    }
  }
}

void AnswerQueue::Copy(std::string_view bytes) {
  if (bytes.empty()) return;
  if (bytes_ == 0) Drop();
  if (!pieces_.empty() && pieces_.back().bytes.block() == nullptr) {
    pieces_.back().size += bytes.size();  // copied_ only grows at its end, so the last piece ends there
  } else {
    pieces_.push_back({bytes.size(), {}});
  }
  copied_.append(bytes);
  bytes_ += bytes.size();
}

void AnswerQueue::Append(const SharedBytes& bytes) {
  if (bytes.empty()) return;
  if (bytes.size() <= kCopyBelow) return Copy(bytes.view());
  if (bytes_ == 0) Drop();
  // The pieces of a body follow one another, with short ones between them that frame them.
  if (!Holds(bytes.block().get())) pinned_ += bytes.block()->bytes.capacity();
  pieces_.push_back({bytes.size(), bytes});
  bytes_ += bytes.size();
}

void AnswerQueue::MoveTo(OutputQueue& out, size_t size) {
  bytes_ -= size;
  while (size > 0) {
    Piece& piece = pieces_[at_];
    const size_t step = std::min(size, piece.size);
    if (piece.bytes.block() != nullptr) {
      out.Append(piece.bytes.Slice(0, step));
      piece.bytes = piece.bytes.Slice(step, std::string_view::npos);
    } else {
      out.Copy({copied_.data() + copied_at_, step});
      copied_at_ += step;
    }
    size -= step;
    piece.size -= step;
    if (piece.size == 0) PopPiece();
  }
  Compact();
}

// Is the block one of the last two pieces', which is where the piece before of the same body is?
bool AnswerQueue::Holds(const SharedBytes::Block* block) const {
  for (size_t i = pieces_.size(); i > at_ && pieces_.size() - i < 2; --i) {
    if (pieces_[i - 1].bytes.block().get() == block) return true;
  }
  return false;
}

void AnswerQueue::PopPiece() {
  const auto block = std::exchange(pieces_[at_].bytes, {}).block();
  ++at_;
  if (block == nullptr) return;
  for (size_t i = at_; i < pieces_.size() && i < at_ + 2; ++i) {
    if (pieces_[i].bytes.block() == block) return;
  }
  pinned_ -= block->bytes.capacity();
}

// An answer of which always a bit is left, as that of a long stream to a slow reader, must not keep what it
// sent. Each byte is moved at most once for each that was sent.
void AnswerQueue::Compact() {
  if (copied_at_ > kCompactAbove && copied_at_ > copied_.size() / 2) {
    copied_.erase(0, copied_at_);
    copied_at_ = 0;
  }
  if (at_ > kMaxPieces && at_ > pieces_.size() / 2) {
    pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<ptrdiff_t>(at_));
    at_ = 0;
  }
}

void AnswerQueue::Drop() {
  pieces_.clear();
  if (copied_.capacity() > kMaxKeptAnswer) {
    std::string().swap(copied_);
  } else {
    copied_.clear();
  }
  at_ = copied_at_ = bytes_ = pinned_ = 0;
}

}  // namespace fairway::net
