// Messages of gRPC C++'s generic client and server as bytes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <vector>

namespace fairway::testing {

inline grpc::ByteBuffer Bytes(const std::string& text) {
  const grpc::Slice slice(text);
  return {&slice, 1};
}
inline std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!buffer.Dump(&slices).ok()) return "?";
  for (const auto& slice : slices) text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return text;
}

}  // namespace fairway::testing
