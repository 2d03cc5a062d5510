#include "frontends/request/headers.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "base/strings.h"

namespace fairway::request {
namespace {

constexpr std::string_view kDefaultPath = "/v1/completions";  // as the reference has it
constexpr std::string_view kOwnPrefix = "x-fairway-";
constexpr size_t kMaxHints = 20'000;  // a pool of 10,000 by two addresses each
constexpr size_t kMaxHint = 300;      // bytes; a host name has 253 at most

// The picker's own headers, and those that tell a prefill/decode side-car where to connect to
// (x-prefiller-url: its first releases).
constexpr std::array kControlHeaders = {
    std::string_view("x-llm-d-inference-objective"),
    std::string_view("x-gateway-inference-objective"),
    std::string_view("x-llm-d-inference-fairness-id"),
    std::string_view("x-gateway-inference-fairness-id"),
    std::string_view("x-llm-d-model-name-rewrite"),
    std::string_view("x-gateway-model-name-rewrite"),
    std::string_view("x-prefiller-url"),
    std::string_view("x-prefiller-host-port"),
    std::string_view("x-encoder-hosts-ports"),
    std::string_view("x-data-parallel-host-port"),
    std::string_view("x-kv-cache-source-host-port"),
};

// Whether `is` holds for an item of a list as HTTP has it, without making one.
template <typename Is>
bool AnyOf(std::string_view list, Is is) {
  for (;;) {
    const size_t comma = list.find(',');
    if (is(base::Trim(list.substr(0, comma)))) return true;
    if (comma == std::string_view::npos) return false;
    list.remove_prefix(comma + 1);
  }
}

constexpr std::string_view kJson = "application/json";

// Whether a content-type names a charset of wider units than bytes: its JSON is not UTF-8. (Of every other
// charset engines take JSON for UTF-8 too, RFC 8259 knows no other.)
[[gnu::noinline]] bool IsWideCharset(std::string_view content_type) {
  constexpr std::string_view kCharset = "charset=";
  const std::string lower = base::ToLower(content_type);
  const size_t at = lower.find(kCharset);
  if (at == std::string::npos) return false;
  std::string_view name = std::string_view(lower).substr(at + kCharset.size());
  if (name.starts_with('"')) name.remove_prefix(1);
  return name.starts_with("utf-16") || name.starts_with("utf-32") || name.starts_with("ucs-");
}

// Whether a Prefer header (RFC 7240) names it, with whatever value and parameters.
[[gnu::noinline]] bool Prefers(std::string_view header, std::string_view preference) {
  return AnyOf(header, [preference](std::string_view item) {
    return base::EqualsIgnoreCase(base::Trim(item.substr(0, item.find_first_of(";="))), preference);
  });
}

bool IsControlHeader(std::string_view name) {
  if (name.starts_with(kDestination) || name.starts_with(kOwnPrefix)) return true;
  return std::find(kControlHeaders.begin(), kControlHeaders.end(), name) != kControlHeaders.end();
}

}  // namespace

bool IsEncoded(std::string_view content_encoding) {
  return AnyOf(content_encoding, [](std::string_view coding) {
    return !coding.empty() && !base::EqualsIgnoreCase(coding, "identity");
  });
}

// "TEXT named_metrics.kv_cache_usage_perc=0.75,named_metrics.num_requests_waiting=3"; some leave out the first
// word.
routing::AnswerLoad ReadLoad(std::string_view value) {
  constexpr size_t kMaxLength = 4096;
  constexpr std::string_view kPrefix = "named_metrics.";
  routing::AnswerLoad load;
  if (value.size() > kMaxLength) return load;
  if (value.starts_with(kLoadText)) value.remove_prefix(kLoadText.size());
  AnyOf(value, [&](std::string_view item) {
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos || !item.starts_with(kPrefix)) return false;
    const std::string_view name = base::Trim(item.substr(kPrefix.size(), equals - kPrefix.size()));
    const std::string_view text = base::Trim(item.substr(equals + 1));
    double number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || !(number >= 0)) return false;
    if (name == "num_requests_waiting") load.waiting = static_cast<uint32_t>(std::min(number, 65'535.0));
    if (name == "kv_cache_usage_perc") load.kv_usage = static_cast<float>(std::min(number, 1.0));
    return false;
  });
  return load;
}

routing::Rejection NoParser(std::string_view path) {
  constexpr size_t kMaxPath = 128;
  path = path.substr(0, path.find('?'));
  return {400, "BadRequest",
          "no parser registered matching path suffix for: " + base::CleanText(path, kMaxPath), ""};
}

bool IsGrpc(std::string_view content_type) {
  constexpr std::string_view kType = "application/grpc";
  if (!content_type.starts_with(kType)) return false;
  return content_type.size() == kType.size() || content_type[kType.size()] == '+' ||
         content_type[kType.size()] == ';';
}

int GrpcStatusOf(int http_status) {
  switch (http_status) {
    case 400:
      return 3;  // INVALID_ARGUMENT
    case 401:
      return 16;  // UNAUTHENTICATED
    case 403:
      return 7;  // PERMISSION_DENIED
    case 404:
      return 5;  // NOT_FOUND
    case 408:
      return 4;  // DEADLINE_EXCEEDED
    case 412:
      return 9;  // FAILED_PRECONDITION
    case 413:
    case 429:
    case 431:
      return 8;  // RESOURCE_EXHAUSTED
    case 500:
      return 13;  // INTERNAL
    case 503:
      return 14;  // UNAVAILABLE
    default:
      return 2;  // UNKNOWN
  }
}

int HttpStatusOf(std::string_view grpc_status) {
  constexpr std::array<int, 17> kStatus = {200, 499, 500, 400, 504, 404, 409, 403, 429,
                                           400, 409, 400, 501, 500, 503, 500, 401};
  const auto status = base::ParseInteger<uint32_t>(base::Trim(grpc_status));
  return status && *status < kStatus.size() ? kStatus[*status] : 500;
}

RefusalHeaders::RefusalHeaders(const routing::Rejection& rejection) {
  Add(kDropReason, rejection.drop_reason);
  Add(kRefusedBy, rejection.refused_by);
  if (rejection.retry_after == 0) return;
  retry_after_ = std::to_string(rejection.retry_after);
  Add(kRetryAfter, retry_after_);
}

void RefusalHeaders::Add(std::string_view name, std::string_view value) {
  if (!value.empty()) headers_[count_++] = {name, value};
}

[[gnu::hot]] void HeaderReader::AddOfBody(std::string_view name, std::string_view value) {
  if (name == "content-length") {
    headers_.has_content_length = true;
    headers_.content_length = base::ParseInteger<uint64_t>(value).value_or(0);
  } else if (name == "content-type") {
    // As a rule "application/json": too short for a charset.
    if (value.size() > kJson.size() && IsWideCharset(value)) headers_.unreadable_body = true;
    headers_.grpc = IsGrpc(value);
  } else if (name == "content-encoding") {
    if (IsEncoded(value)) headers_.unreadable_body = true;
  } else if (name == "connection") {
    upgrade_connection_ |=
        AnyOf(value, [](std::string_view option) { return base::EqualsIgnoreCase(option, "upgrade"); });
  }
}

[[gnu::noinline]] void HeaderReader::AddWanted(std::string_view name, std::string_view value) {
  constexpr size_t kMaxWanted = 64;  // a header may come many times
  const auto at = std::lower_bound(wanted_.begin(), wanted_.end(), name);
  if (at != wanted_.end() && *at == name && headers_.wanted.size() < kMaxWanted)
    headers_.wanted.emplace_back(name, value);
}

[[gnu::hot]] void HeaderReader::Add(std::string_view name, std::string_view value) {
  if (name.empty()) return;
  if (!wanted_.empty()) [[unlikely]]
    AddWanted(name, value);
  // Most headers are none of ours: one look at the first character tells.
  switch (name[0]) {
    case ':':
      if (name == ":path") headers_.path = value;
      if (name == ":method" && value == "CONNECT") headers_.tunnel = true;
      return;
    case 'c':
      AddOfBody(name, value);
      return;
    case 'e':
      if (name == kLoadFormat) headers_.asks_load = true;
      return;
    case 'p':
      if (name == "prefer") headers_.if_available |= Prefers(value, "if-available");
      return;
    case 'u':
      if (name == "upgrade") upgrade_named_ = !base::Trim(value).empty();
      return;
    case 'x':
      break;
    default:
      return;
  }
  if (name == "x-request-id") {
    headers_.request_id = value;
  } else if (name == "x-original-path") {
    original_path_ = value;
  } else if (name == "x-forwarded-path") {
    forwarded_path_ = value;
  } else if (IsControlHeader(name)) {
    // Of an alias the new name counts, in whatever order they come.
    if (name == "x-llm-d-inference-fairness-id") {
      headers_.fairness_id = value;
      fairness_by_new_name_ = true;
    } else if (name == "x-gateway-inference-fairness-id" && !fairness_by_new_name_) {
      headers_.fairness_id = value;
    } else if (name == "x-llm-d-model-name-rewrite") {
      headers_.model_rewrite = value;
      rewrite_by_new_name_ = true;
    } else if (name == "x-gateway-model-name-rewrite" && !rewrite_by_new_name_) {
      headers_.model_rewrite = value;
    } else if (name == "x-llm-d-inference-objective") {
      headers_.objective = value;
      objective_by_new_name_ = true;
    } else if (name == "x-gateway-inference-objective" && !objective_by_new_name_) {
      headers_.objective = value;
    }
    if (name == kDestination) {
      headers_.has_destination = true;
    } else {
      headers_.control.push_back(name);
    }
  }
}

[[gnu::hot]] RequestHeaders HeaderReader::Finish() {
  if (auto& control = headers_.control; control.size() > 1) [[unlikely]] {
    std::sort(control.begin(), control.end());
    control.erase(std::unique(control.begin(), control.end()), control.end());
  }
  if (upgrade_named_ && upgrade_connection_) headers_.tunnel = true;
  if (headers_.path.empty()) {
    headers_.path = !original_path_.empty()    ? original_path_
                    : !forwarded_path_.empty() ? forwarded_path_
                                               : kDefaultPath;
  }
  return std::exchange(headers_, {});
}

void AddHints(std::string_view text, routing::SubsetHint& hint) {
  while (!text.empty() && hint.size() < kMaxHints) {
    const size_t end = std::min(text.find(','), text.size());
    const std::string_view entry = base::Trim(text.substr(0, end));
    if (!entry.empty() && entry.size() <= kMaxHint) hint.emplace_back(entry);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

std::string NewRequestId(base::Random& random) {
  constexpr std::string_view kHex = "0123456789abcdef";
  constexpr std::string_view kShape = "xxxxxxxx-xxxx-4xxx-Yxxx-xxxxxxxxxxxx";
  std::string id(kShape);
  uint64_t bits = 0;
  int left = 0;
  for (char& c : id) {
    if (c != 'x' && c != 'Y') continue;
    if (left == 0) {
      bits = random.Next();
      left = 16;
    }
    const uint64_t nibble = bits & 15;
    bits >>= 4;
    --left;
    c = c == 'x' ? kHex[nibble] : kHex[8 | (nibble & 3)];
  }
  return id;
}

}  // namespace fairway::request
