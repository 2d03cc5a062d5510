#include "tests/equality/exchange.h"

#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace fairway::equality {
namespace {

constexpr std::string_view kHex = "0123456789abcdef";

// Strings of a file, each with its length before it (4 bytes, little endian).
class Reader {
 public:
  explicit Reader(std::string bytes) : bytes_(std::move(bytes)) {}
  bool done() const { return at_ == bytes_.size(); }
  std::string Next() {
    uint32_t size = 0;
    if (bytes_.size() - at_ < sizeof size) Die("the requests are cut");
    std::memcpy(&size, bytes_.data() + at_, sizeof size);
    at_ += sizeof size;
    if (bytes_.size() - at_ < size) Die("the requests are cut");
    std::string text = bytes_.substr(at_, size);
    at_ += size;
    return text;
  }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

// What would break a line, and what is no ASCII, as %xx.
void AppendEscaped(std::string& out, std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && byte != '%') {
      out += c;
    } else {
      out += '%';
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
}

std::string Digest(std::string_view body) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> hash{};
  SHA256(reinterpret_cast<const unsigned char*>(body.data()), body.size(), hash.data());
  std::string text = std::to_string(body.size()) + " bytes ";
  for (const unsigned char byte : hash) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

}  // namespace

void Die(const std::string& message) {
  std::fprintf(stderr, "replay: %s\n", message.c_str());
  std::exit(1);
}

std::optional<std::string> Find(const Headers& headers, std::string_view name) {
  std::optional<std::string> found;
  for (const auto& [key, value] : headers) {
    if (key == name) found = value;
  }
  return found;
}

void Remove(Headers& headers, std::string_view name) {
  std::erase_if(headers, [name](const auto& header) { return header.first == name; });
}

void Set(Headers& headers, std::string_view name, std::string_view value) {
  Remove(headers, name);
  headers.emplace_back(name, value);
}

std::vector<Request> ReadRequests(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Die("cannot read " + path);
  Reader reader({std::istreambuf_iterator<char>(file), {}});
  std::vector<Request> requests;
  while (!reader.done()) {
    Request& request = requests.emplace_back();
    request.pool = reader.Next();
    request.method = reader.Next();
    request.target = reader.Next();
    request.authority = reader.Next();
    request.ends_with_headers = reader.Next() == "ends";
    if (reader.Next() == "hint") {
      request.hint = reader.Next();
    } else {
      reader.Next();
    }
    const std::string count = reader.Next();
    for (unsigned long i = std::stoul(count); i > 0; --i) {
      std::string name = reader.Next();
      request.headers.emplace_back(std::move(name), reader.Next());
    }
    request.body = reader.Next();
  }
  return requests;
}

std::string ToLine(const Request& request, const Outcome& outcome) {
  std::string line;
  const auto add = [&line](std::string_view text) {
    if (!line.empty()) line += '\t';
    AppendEscaped(line, text);
  };
  if (outcome.status != 0) {
    add("refused");
    add(std::to_string(outcome.status));
    add(outcome.drop_reason);
    add(outcome.refused_by);
    add(outcome.come_again ? "come again" : "-");
    add(outcome.body);
    return line;
  }
  add("sent");
  add(outcome.destinations);
  add(request.method + " " + request.target);
  Headers headers = outcome.headers;
  headers.emplace_back("host", request.authority);
  // HTTP/1.1's way to say where a body ends that has no length.
  if (!request.ends_with_headers && !Find(headers, "content-length")) {
    headers.emplace_back("transfer-encoding", "chunked");
  }
  // The order of different names means nothing in HTTP; that of equal ones does.
  std::stable_sort(headers.begin(), headers.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [name, value] : headers) add(name + ": " + value);
  add(Digest(outcome.body));
  return line;
}

}  // namespace fairway::equality
