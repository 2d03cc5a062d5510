// What the equality test replays and compares: a request as a gateway has it after its own work and before
// the picker is asked, and what came of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fairway::equality {

using Headers = std::vector<std::pair<std::string, std::string>>;  // names in lower case, in their order

struct Request {
  std::string pool;  // "namespace/name"
  std::string method;
  std::string target;
  std::string authority;
  bool ends_with_headers = false;
  std::optional<std::string> hint;  // the gateway's subset hint
  Headers headers;                  // without pseudo headers
  std::string body;
};

// Either refused (a status) or sent on.
struct Outcome {
  int status = 0;           // of a refusal; 0: sent on
  std::string drop_reason;  // "-": the header is not there, for these
  std::string refused_by = "-";
  bool come_again = false;  // retry-after is there; when depends on what was learned of times
  std::string destinations;
  Headers headers;
  std::string body;  // of the answer, or of the request that goes on
};

// The header's value, of several the last; nothing when it is not there.
std::optional<std::string> Find(const Headers& headers, std::string_view name);
void Remove(Headers& headers, std::string_view name);
// Takes the place of all that have this name.
void Set(Headers& headers, std::string_view name, std::string_view value);

// Requests as tests/equality/traffic.py writes them. Ends the program on a file that is none.
std::vector<Request> ReadRequests(const std::string& path);

// The whole outcome in one line of fields with tabs between them: what a client or a model server would
// notice.
std::string ToLine(const Request& request, const Outcome& outcome);

[[noreturn]] void Die(const std::string& message);

}  // namespace fairway::equality
