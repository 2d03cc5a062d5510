// session-affinity-filter and session-affinity-scorer: a session stays with its endpoint. The filter keeps
// that one alone, or all where it is not among them; the scorer gives it 1 and others 0. `strategy`:
//
//   encoded_endpoint_header   the default. The answer's header `encodedEndpointHeaderConfig.header`
//                             (x-session-token) names the endpoint (session_token.h); the client sends it
//                             back.
//   session_id                Requests say an id; the first of `sessionIdConfig.sources` that one has:
//                             `header` (x-session-id), or `attribute` of `producer` (session-id-producer,
//                             agent-identity). What an id is bound to is remembered (sessions.h) for
//                             `evictionTtlSeconds` (300, at most 90 days) after its last request, and is
//                             bound anew when its endpoint has left the pool.
//
// `profileName`: whose choice it is; that of the profile that answers. Source: the reference's plugins of
// these names (llm-d router).
#include <algorithm>
#include <array>
#include <charconv>
#include <vector>

#include "api/decode.h"
#include "api/scalars.h"
#include "base/strings.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/keys.h"
#include "scheduling/plugins/sessions.h"
#include "scheduling/session_token.h"

namespace fairway::scheduling {
namespace {

uint64_t KeyOfName(const fleet::Endpoint& endpoint) noexcept {
  return KeyOf({endpoint.namespace_name, "/", endpoint.name});
}
uint64_t KeyWithPort(const fleet::Endpoint& endpoint) noexcept {
  std::array<char, 8> port{};
  const char* end = std::to_chars(port.data(), port.data() + port.size(), endpoint.port).ptr;
  return KeyOf({endpoint.namespace_name, "/", endpoint.name, ":", {port.data(), end}});
}

// What filter and scorer have in common.
class SessionAffinity : public Plugin, public EndpointProducer, public RequestHook, public SessionTeller {
 public:
  explicit SessionAffinity(Build& build)
      : name_(build, "name"),
        port_(build, "port"),
        by_id_(build.Choice("strategy", {"encoded_endpoint_header", "session_id"}, 0,
                            "How a session is known: by a header of ours, or by an id") == 1),
        profile_(
            build.Text("profileName", "", "Profile whose endpoint is remembered; none: the primary one")) {
    const api::Node header = build.Object("encodedEndpointHeaderConfig", "{header: x-session-token}");
    const api::Node ids = build.Object(
        "sessionIdConfig",
        "{sources: [{header or attribute, producer}], evictionTtlSeconds: 300, evictionSweepSeconds: 10}");
    if (header.present()) ReadHeader(header);
    if (ids.present()) ReadIds(build, ids);
    if (by_id_ && headers_.empty()) headers_.push_back({build.WantsHeader("x-session-id"), nullptr});
    if (by_id_) {
      sessions_ = build.Remember<Sessions>([] { return std::make_shared<Sessions>(); });
    } else {
      build.WantsHeader(token_header_);
    }
  }
  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    return name_.Has(column) ? name_.Value(column, KeyOfName(endpoint))
                             : port_.Value(column, KeyWithPort(endpoint));
  }

  void Picked(const Context& context, uint32_t, const fleet::Endpoint& endpoint) const noexcept override {
    if (by_id_ && (profile_.empty() || profile_ == context.profile)) Bind(context, endpoint);
  }
  void PickedBeside(const Context& context, std::string_view profile, uint32_t,
                    const fleet::Endpoint& endpoint) const noexcept override {
    if (by_id_ && profile == profile_) Bind(context, endpoint);
  }
  std::string_view TokenHeader() const noexcept override {
    return by_id_ ? std::string_view() : std::string_view(token_header_);
  }
  std::string_view TokenProfile() const noexcept override { return profile_; }

 protected:
  // The key of the endpoint that the request is bound to; 0: none.
  uint64_t Bound(const Context& context) const noexcept {
    if (by_id_) {
      const uint64_t session = KeyOf(IdOf(context.request));
      return session == 0 ? 0 : sessions_->Find(session, context.now, ttl_).value_or(0);
    }
    constexpr size_t kLongestName = 512;
    std::array<char, kLongestName> memory;
    return KeyOf(ReadSessionToken(context.request.header(token_header_), memory));
  }
  bool Is(const Columns& columns, uint32_t position, uint64_t bound) const noexcept {
    return bound != 0 && (port_.At(columns, position) == bound || name_.At(columns, position) == bound);
  }

 private:
  struct Source {
    std::string header;
    const RequestText* text = nullptr;  // null: the header
  };

  void ReadHeader(const api::Node& node) {
    api::ObjectReader reader(node);
    const std::string header = reader.Get("header").Text().value_or("");
    if (!base::Trim(header).empty()) token_header_ = base::ToLower(base::Trim(header));
    reader.Finish();
  }
  void ReadIds(Build& build, const api::Node& node) {
    api::ObjectReader reader(node);
    for (const api::Node& source : reader.Get("sources").Items(0, 100)) ReadSource(build, source);
    constexpr double kLongest = 90.0 * 86'400;
    double ttl = api::ReadNumber(reader.Get("evictionTtlSeconds"), 0, 1e12).value_or(0);
    if (ttl > kLongest) reader.Get("evictionTtlSeconds").Warn("counts as 90 days");
    ttl = std::min(ttl, kLongest);
    if (ttl > 0) ttl_ = static_cast<base::Nanos>(ttl * static_cast<double>(base::kSecond));
    if (reader.Get("evictionSweepSeconds").present())
      reader.Get("evictionSweepSeconds").Warn("has no effect here: what is too old is not found any more");
    reader.Finish();
  }
  void ReadSource(Build& build, const api::Node& node) {
    api::ObjectReader reader(node);
    const std::string header = reader.Get("header").Text().value_or("");
    const std::string attribute = reader.Get("attribute").Text().value_or("");
    const std::string producer = reader.Get("producer").Text().value_or("");
    reader.Finish();
    if (header.empty() == attribute.empty()) {
      node.Error("want one of header and attribute");
    } else if (!header.empty()) {
      headers_.push_back({build.WantsHeader(base::Trim(header)), nullptr});
    } else {
      const std::string name = !producer.empty()               ? producer
                               : attribute == "agent-identity" ? attribute
                                                               : "session-id-producer";
      const auto* text = build.RefersOptional<RequestText>("sessionIdConfig", name);
      if (text == nullptr)
        node.Error("there is no plugin " + api::Quote(name) + " that finds a session's id");
      headers_.push_back({{}, text});
    }
  }

  std::string_view IdOf(const Facts& request) const noexcept {
    for (const Source& source : headers_) {
      const std::string_view id =
          source.text != nullptr ? source.text->TextOf(request) : base::Trim(request.header(source.header));
      if (!id.empty()) return id;
    }
    return {};
  }
  void Bind(const Context& context, const fleet::Endpoint& endpoint) const noexcept {
    const uint64_t session = KeyOf(IdOf(context.request));
    if (session == 0) return;
    const uint64_t picked = KeyWithPort(endpoint);
    const uint64_t bound = Bound(context);
    if (bound != 0 && bound != picked) {
      for (uint32_t i = 0; i < context.columns.size(); ++i) {
        if (port_.At(context.columns, i) == bound) return;  // it is still there
      }
    }
    sessions_->Bind(session, picked, context.now);
  }

  KeyColumns name_, port_;  // of "namespace/name" and "namespace/name:port"
  bool by_id_;
  std::string profile_;
  std::string token_header_ = "x-session-token";
  std::vector<Source> headers_;
  base::Nanos ttl_ = 300 * base::kSecond;
  std::shared_ptr<Sessions> sessions_;
};

class SessionAffinityFilter final : public SessionAffinity, public Filter {
 public:
  using SessionAffinity::SessionAffinity;
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const uint64_t bound = Bound(context);
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += Is(context.columns, position, bound) ? 1 : 0;
    }
    if (kept > 0) return kept;
    std::copy(in.begin(), in.end(), out);
    return in.size();
  }
  std::string Why(const Context&, uint32_t) const override { return "the session has another endpoint"; }
};

class SessionAffinityScorer final : public SessionAffinity, public Scorer {
 public:
  using SessionAffinity::SessionAffinity;
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const uint64_t bound = Bound(context);
    for (size_t i = 0; i < in.size(); ++i) out[i] = Is(context.columns, in[i], bound) ? 1.0f : 0.0f;
  }
};

}  // namespace

std::unique_ptr<Plugin> MakeSessionAffinityFilter(Build& build) {
  return std::make_unique<SessionAffinityFilter>(build);
}
std::unique_ptr<Plugin> MakeSessionAffinityScorer(Build& build) {
  return std::make_unique<SessionAffinityScorer>(build);
}

}  // namespace fairway::scheduling
