// What a request says to the picker in its HTTP headers, and the names of those headers: one reading for
// every frontend, so that they decide the same.
//
//   HeaderReader reader(router.WantedHeaders(worker));
//   for each header: reader.Add(name, value);       // names in lower case
//   const RequestHeaders headers = reader.Finish();
//
// Source: the endpoint picker protocol (proposal 004 of the Gateway API Inference Extension) and the
// reference's request handling; names of the `x-llm-d-` family count before their `x-gateway-` aliases.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/random.h"
#include "routing/router.h"

namespace fairway::request {

// The header that names the first choice, and the key of the ordered list in the metadata of kLbNamespace.
inline constexpr std::string_view kDestination = "x-gateway-destination-endpoint";
inline constexpr std::string_view kLbNamespace = "envoy.lb";
// Envoy sets it on the 503 with which it keeps its circuit breakers' limits.
inline constexpr std::string_view kOverloaded = "x-envoy-overloaded";
inline constexpr std::string_view kHintNamespace = "envoy.lb.subset_hint";
inline constexpr std::string_view kHintKey = "x-gateway-destination-endpoint-subset";
inline constexpr std::string_view kDropReason = "x-llm-d-request-dropped-reason";
inline constexpr std::string_view kRefusedBy = "x-fairway-refused-by";
inline constexpr std::string_view kRetryAfter = "retry-after";

// An engine that is asked in this format says with its answer how loaded it is (vLLM, Triton; the headers are
// those of Envoy's ORCA).
inline constexpr std::string_view kLoadFormat = "endpoint-load-metrics-format";
inline constexpr std::string_view kLoadText = "TEXT";
inline constexpr std::string_view kLoad = "endpoint-load-metrics";
// What kLoad says. What it does not say, or says in another way, is absent.
routing::AnswerLoad ReadLoad(std::string_view value);

// Of a request whose path no parser takes.
routing::Rejection NoParser(std::string_view path);

// A request or an answer of gRPC, by its content-type.
bool IsGrpc(std::string_view content_type);
// gRPC's status for an HTTP status with which we refuse: what a gRPC client is to make of it.
int GrpcStatusOf(int http_status);
// The HTTP status that says most nearly what a gRPC status does, 200 for "0"; 500 for what is none. Of gRPC's own
// answers the HTTP status is 200 even where they are nothing but an error.
int HttpStatusOf(std::string_view grpc_status);
inline constexpr std::string_view kGrpcStatus = "grpc-status";

// The headers of the answer to a refused request.
class RefusalHeaders {
 public:
  static constexpr size_t kMost = 3;
  // REQUIRES: `rejection` outlives it.
  explicit RefusalHeaders(const routing::Rejection& rejection);
  RefusalHeaders(const RefusalHeaders&) = delete;
  RefusalHeaders& operator=(const RefusalHeaders&) = delete;
  std::span<const std::pair<std::string_view, std::string_view>> all() const {
    return std::span(headers_).first(count_);
  }

 private:
  void Add(std::string_view name, std::string_view value);

  std::string retry_after_;
  std::array<std::pair<std::string_view, std::string_view>, kMost> headers_;
  size_t count_ = 0;
};

// Views into what was given to the reader.
struct RequestHeaders {
  std::string_view path;        // never empty: with none, the reference's default
  std::string_view request_id;  // x-request-id; "" when the client and the gateway gave none
  std::string_view fairness_id;
  std::string_view model_rewrite;
  std::string_view objective;
  bool has_destination = false;  // the client sent a kDestination of its own
  bool if_available = false;     // prefer: if-available (RFC 7240)
  // An upgrade or CONNECT: what follows the headers is a conversation, not a body that ends.
  bool tunnel = false;
  // The body is not to be read as JSON in UTF-8: it is compressed (content-encoding), or in another charset.
  bool unreadable_body = false;
  bool grpc = false;       // IsGrpc of its content-type
  bool asks_load = false;  // the client wants the server's load for itself (kLoadFormat)
  bool has_content_length = false;
  uint64_t content_length = 0;
  // What the client said to us and no model server is to hear, each name once, in order: to be removed.
  // kDestination is not among them: it is overwritten.
  std::vector<std::string_view> control;
  // Of the headers that the scheduler's plugins read, those that there are.
  std::vector<std::pair<std::string_view, std::string_view>> wanted;
};

// The value of a request's or a response's content-encoding names an encoding.
bool IsEncoded(std::string_view content_encoding);

class HeaderReader {
 public:
  HeaderReader() = default;
  // `wanted`: names that plugins read, sorted, in lower case. REQUIRES: it outlives the reader.
  explicit HeaderReader(std::span<const std::string> wanted) : wanted_(wanted) {}
  void Add(std::string_view name, std::string_view value);
  RequestHeaders Finish();

 private:
  void AddOfBody(std::string_view name, std::string_view value);
  void AddWanted(std::string_view name, std::string_view value);

  std::span<const std::string> wanted_;
  RequestHeaders headers_;
  std::string_view original_path_;
  std::string_view forwarded_path_;
  bool fairness_by_new_name_ = false;
  bool rewrite_by_new_name_ = false;
  bool objective_by_new_name_ = false;
  bool upgrade_named_ = false;       // upgrade: something
  bool upgrade_connection_ = false;  // connection: upgrade
};

// Appends the endpoints that `text` lists, separated by commas. A hint has 1,000 at most: what is beyond them
// is not looked at, nor is what is too long for an address, so that fewer endpoints are allowed than the
// gateway said, and never others.
void AddHints(std::string_view text, routing::SubsetHint& hint);

// A version 4 UUID (RFC 9562), for requests that came without an id.
std::string NewRequestId(base::Random& random);

}  // namespace fairway::request
