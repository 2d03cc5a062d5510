#include "payload/grpc_scanner.h"

#include <algorithm>

namespace fairway::payload {
namespace {

constexpr uint32_t kVarint = 0, kFixed64 = 1, kDelimited = 2, kGroup = 3, kGroupEnd = 4, kFixed32 = 5;

}  // namespace

void GrpcScanner::Feed(std::string_view chunk, GrpcSink& sink) {
  while (!chunk.empty() && error_ == nullptr) {
    if (head_size_ < head_.size()) {
      head_[head_size_++] = static_cast<unsigned char>(chunk.front());
      chunk.remove_prefix(1);
      ++offset_;
      if (head_size_ < head_.size()) continue;
      BeginMessage();
    }
    const std::string_view bytes =
        chunk.substr(0, static_cast<size_t>(std::min<uint64_t>(left_, chunk.size())));
    chunk.remove_prefix(bytes.size());
    if (!skips_ && error_ == nullptr) Read(bytes, sink);
    if (error_ != nullptr) return;
    if (skips_) offset_ += bytes.size();
    left_ -= bytes.size();
    if (left_ == 0) EndMessage(sink);
  }
}

void GrpcScanner::BeginMessage() {
  if (head_[0] > 1) return Fail("the first byte of a message is neither 0 nor 1");
  skips_ = head_[0] == 1;
  compressed_ |= skips_;
  left_ = 0;
  for (size_t i = 1; i < head_.size(); ++i) left_ = left_ << 8 | head_[i];
  step_ = Step::kTag;
  at_ = 0;
  levels_[0] = {0, left_};
  depth_ = 0;
  groups_ = 0;
  value_ = shift_ = 0;
}

void GrpcScanner::EndMessage(GrpcSink& sink) {
  head_size_ = 0;
  ++messages_;
  if (!skips_) {
    // Lengths were compared with what they stand in: only a tag, a number or a group can be cut.
    if (step_ != Step::kTag || shift_ != 0) return Fail("a field is cut by the end of its message");
    if (groups_ != 0) return Fail("a group has no end");
    sink.OnMessageEnd();
  }
  skips_ = false;
}

bool GrpcScanner::Finish() {
  if (error_ != nullptr) return false;
  if (head_size_ != 0) {
    Fail("the body ends within a message");
  } else if (messages_ == 0) {
    Fail("there is no message");
  }
  return error_ == nullptr;
}

std::string GrpcScanner::error() const {
  return error_ == nullptr ? std::string()
                           : std::string(error_) + " (at byte " + std::to_string(offset_) + ")";
}

void GrpcScanner::Read(std::string_view bytes, GrpcSink& sink) {
  while (!bytes.empty() && error_ == nullptr) {
    switch (step_) {
      case Step::kTag:
        if (Varint(bytes)) OnTag();
        break;
      case Step::kLength:
        if (Varint(bytes)) OnLength(sink);
        break;
      case Step::kNumber:
        if (!Varint(bytes)) break;
        if (groups_ == 0) sink.OnNumber(field_, value_);
        value_ = shift_ = 0;
        step_ = Step::kTag;
        break;
      case Step::kNumbers:
        if (Varint(bytes)) {
          sink.OnNumber(field_, value_);
          value_ = shift_ = 0;
        }
        if (error_ == nullptr && at_ == field_end_) {
          if (shift_ != 0) return Fail("a number is cut by the end of its field");
          EndField(sink);
        }
        break;
      case Step::kSkip:
      case Step::kBytes:
        Pass(bytes, sink);
        break;
    }
    // What ends with what was read. A message that is empty ends at once.
    while (error_ == nullptr && depth_ > 0 && at_ >= levels_[depth_].end) {
      if (step_ != Step::kTag || shift_ != 0) return Fail("a field is cut by the end of what it stands in");
      if (groups_ != 0) return Fail("a group has no end");
      sink.OnLeave(levels_[depth_--].field);
    }
  }
}

// True: value_ is complete; whoever used it clears it.
bool GrpcScanner::Varint(std::string_view& bytes) {
  while (!bytes.empty()) {
    if (depth_ > 0 && at_ == levels_[depth_].end) return false;
    if (step_ == Step::kNumbers && at_ == field_end_) return false;
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    ++at_;
    ++offset_;
    if (shift_ >= 70) {
      Fail("a number is longer than 10 bytes");
      return false;
    }
    if (shift_ < 64) value_ |= static_cast<uint64_t>(byte & 0x7f) << shift_;
    shift_ += 7;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

void GrpcScanner::OnTag() {
  const uint64_t tag = value_;
  value_ = shift_ = 0;
  if (tag > UINT32_MAX || tag >> 3 == 0) return Fail("there is no field of that number");
  field_ = static_cast<uint32_t>(tag >> 3);
  const uint64_t end = levels_[depth_].end;
  switch (tag & 7) {
    case kVarint:
      step_ = Step::kNumber;
      return;
    case kDelimited:
      step_ = Step::kLength;
      return;
    case kFixed64:
    case kFixed32:
      field_end_ = at_ + ((tag & 7) == kFixed64 ? 8 : 4);
      if (field_end_ > end) return Fail("a field is longer than what it stands in");
      step_ = Step::kSkip;
      return;
    case kGroup:
      if (++groups_ > kMaxGroups) Fail("groups are nested too deep");
      return;
    case kGroupEnd:
      if (groups_ == 0) return Fail("a group ends that did not begin");
      --groups_;
      return;
    default:
      return Fail("there is no such type of field");
  }
}

void GrpcScanner::OnLength(GrpcSink& sink) {
  const uint64_t length = value_;
  value_ = shift_ = 0;
  if (length > levels_[depth_].end - at_) return Fail("a field is longer than what it stands in");
  field_end_ = at_ + length;
  step_ = Step::kSkip;
  const auto take = groups_ == 0 ? sink.OnField(field_, offset_, length) : GrpcSink::Take::kSkip;
  switch (take) {
    case GrpcSink::Take::kSkip:
      if (length == 0) step_ = Step::kTag;
      return;
    case GrpcSink::Take::kMessage:
      if (depth_ == kMaxDepth) return Fail("messages are nested too deep");
      levels_[++depth_] = {field_, field_end_};
      step_ = Step::kTag;
      return;
    case GrpcSink::Take::kBytes:
    case GrpcSink::Take::kNumbers:
      step_ = take == GrpcSink::Take::kBytes ? Step::kBytes : Step::kNumbers;
      if (length == 0) EndField(sink);
      return;
  }
}

// Bytes that are no numbers to us.
void GrpcScanner::Pass(std::string_view& bytes, GrpcSink& sink) {
  const std::string_view piece =
      bytes.substr(0, static_cast<size_t>(std::min<uint64_t>(field_end_ - at_, bytes.size())));
  bytes.remove_prefix(piece.size());
  at_ += piece.size();
  offset_ += piece.size();
  if (step_ == Step::kBytes) sink.OnBytes(piece);
  if (at_ < field_end_) return;
  if (step_ == Step::kBytes) return EndField(sink);
  step_ = Step::kTag;
}

void GrpcScanner::EndField(GrpcSink& sink) {
  step_ = Step::kTag;
  sink.OnEnd(field_);
}

}  // namespace fairway::payload
