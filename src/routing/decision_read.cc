// What was recorded, read back (decision_json.h).
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "base/strings.h"
#include "routing/decision_json.h"

namespace fairway::routing {
namespace {

using api::Node;
using api::ObjectReader;
using api::Value;
using scheduling::Recording;

// A number as it was written; null is none. Nothing, and a problem, where it is something else.
template <typename Number>
std::optional<Number> NumberOf(const Node& node, const Value* value) {
  if (value != nullptr && (value->kind == Value::Kind::kNumber || value->kind == Value::Kind::kString)) {
    Number number{};
    const char* end = value->text.data() + value->text.size();
    const auto [at, error] = std::from_chars(value->text.data(), end, number);
    if (error == std::errc() && at == end) return number;
  }
  node.Error("want a number");
  return std::nullopt;
}

template <typename Number>
void Read(const Node& node, Number& out) {
  if (!node.present()) return;
  if (const auto number = NumberOf<Number>(node, &node.value())) out = *number;
}
void Read(const Node& node, bool& out) {
  if (!node.present()) return;
  if (!node.Is(Value::Kind::kBool)) return node.WrongType("true or false");
  out = node.value().text == "true";
}
void Read(const Node& node, std::string& out) { out = node.Text().value_or(""); }

constexpr size_t kMost = Recording::kMaxCandidates;

// One number for each candidate, nothing: `none`. Empty where the list is absent.
template <typename Number>
std::vector<Number> ReadList(const Node& node, size_t n, Number none) {
  std::vector<Number> out;
  if (!node.present()) return out;
  if (!node.Is(Value::Kind::kList)) return node.WrongType("a list"), out;
  const auto& items = node.value().items;
  if (items.size() != n) {
    node.Error("want " + std::to_string(n) + " numbers, one for each endpoint, not " +
               std::to_string(items.size()));
    return out;
  }
  for (const api::ValuePtr& item : items) {
    out.push_back(item->kind == Value::Kind::kNull ? none
                                                   : NumberOf<Number>(node, item.get()).value_or(none));
  }
  return out;
}

std::vector<uint32_t> ReadFlags(const Node& node, size_t n) {
  if (!node.present()) return std::vector<uint32_t>(n, 1);
  std::vector<uint32_t> out;
  for (const Node& item : node.Items(n, n)) {
    bool flag = true;
    Read(item, flag);
    out.push_back(flag ? 1 : 0);
  }
  out.resize(n, 1);
  return out;
}

void ReadEndpoints(const Node& node, ReadDecision& out) {
  auto names = std::make_shared<EndpointNames>();
  std::map<std::string, bool, std::less<>> seen;
  for (const Node& item : node.Items(1, kMost)) {
    ObjectReader reader(item);
    if (!reader.valid()) continue;
    fleet::Endpoint endpoint;
    Read(reader.Require("name"), endpoint.name);
    const Node address = reader.Get("address");
    Read(address, endpoint.address);
    if (endpoint.address.empty()) endpoint.address = endpoint.name;
    if (!seen.emplace(endpoint.address, true).second) item.Error("the same address is there twice");
    if (const Node labels = reader.Get("labels"); labels.present())
      endpoint.labels = api::ReadTextMap(labels, api::CheckLabelKey, api::CheckLabelValue, 1000);
    reader.Finish();
    names->names.push_back({endpoint.name, endpoint.address});
    out.decision.seen.endpoint.push_back(static_cast<uint32_t>(out.endpoints.size()));
    out.endpoints.push_back(std::move(endpoint));
  }
  out.decision.names = std::move(names);
}

// They have numbers behind those of the candidates.
void ReadRefusing(const Node& node, ReadDecision& out) {
  if (!node.present()) return;
  auto names = std::make_shared<EndpointNames>(*out.decision.names);
  for (const Node& item : node.Items(0, Recording::kMaxRefusing)) {
    ObjectReader reader(item);
    EndpointNames::Name name;
    out.decision.seen.refusing.push_back(static_cast<uint32_t>(names->names.size()));
    Read(reader.Require("name"), name.name);
    Read(reader.Require("address"), name.address);
    uint32_t age = scheduling::kNoPage;
    Read(reader.Get("pageAgeMs"), age);
    out.decision.seen.refusing_age.push_back(age);
    reader.Finish();
    names->names.push_back(std::move(name));
  }
  out.decision.names = std::move(names);
}

void ReadRequest(const Node& node, scheduling::Facts& facts) {
  if (!node.present()) return;
  ObjectReader reader(node);
  if (!reader.valid()) return;
  Read(reader.Get("targetModel"), facts.target_model);
  Read(reader.Get("adapter"), facts.adapter);
  Read(reader.Get("critical"), facts.critical);
  Read(reader.Get("promptTokens"), facts.prompt_tokens);
  Read(reader.Get("showsFirstToken"), facts.shows_first_token);
  Read(reader.Get("showsEnd"), facts.shows_end);
  Read(reader.Get("priority"), facts.priority);
  Read(reader.Get("streaming"), facts.streaming);
  Read(reader.Get("hasMedia"), facts.has_media);
  Read(reader.Get("onlyIfCached"), facts.only_if_cached);
  Read(reader.Get("maxTokens"), facts.max_tokens);
  const Node headers = reader.Get("headers");
  if (headers.Is(Value::Kind::kMap)) {
    for (const Value::Entry& header : headers.value().entries)
      facts.headers.emplace_back(base::ToLower(header.key), header.value->text);
  }
  reader.Finish();
}

void ReadGenerator(const Node& node, base::Random& random) {
  if (!node.present()) {
    random = base::Random(1);
    return;
  }
  base::Random::State state{};
  const std::vector<Node> words = node.Items(state.size(), state.size());
  for (size_t i = 0; i < words.size(); ++i) Read(words[i], state[i]);
  random = base::Random::Of(state);
}

constexpr size_t kMaxColumns = 1000;

// Values by name, each a list of one number for each endpoint.
void ReadColumns(const Node& node, Recording& seen) {
  if (!node.present()) return;
  if (!node.Is(Value::Kind::kMap)) return node.WrongType("a map of columns");
  for (const auto& [key, member] : node.Members(kMaxColumns)) {
    const auto values = ReadList<float>(member, seen.size(), std::numeric_limits<float>::quiet_NaN());
    if (values.size() != seen.size()) continue;
    seen.names.emplace_back(key);
    seen.values.insert(seen.values.end(), values.begin(), values.end());
  }
  seen.num_columns = seen.names.size();
}

void ReadPicture(const Node& node, ReadDecision& out) {
  ObjectReader reader(node);
  if (!reader.valid()) return;
  Recording& seen = out.decision.seen;
  ReadEndpoints(reader.Require("endpoints"), out);
  const size_t n = seen.size();
  seen.num_candidates = n;
  ReadRefusing(reader.Get("refusing"), out);
  ReadRequest(reader.Get("request"), seen.facts);
  ReadGenerator(reader.Get("generator"), seen.random);
  Read(reader.Get("criticalTraffic"), seen.critical_traffic);
  Read(reader.Get("withModels"), seen.with_models);
  Read(reader.Get("silenceNs"), seen.silence);
  Read(reader.Get("nowNs"), seen.now);
  Read(reader.Get("asksAdmitters"), seen.asks_admitters);
  reader.Ignore({"options"});  // the caller's, before
  seen.own = ReadList<uint32_t>(reader.Get("own"), n, 0);
  seen.own.resize(n);
  seen.fresh = ReadFlags(reader.Get("fresh"), n);
  seen.page_age = ReadList<uint32_t>(reader.Get("pageAgeMs"), n, scheduling::kNoPage);
  seen.page_age.resize(n, scheduling::kNoPage);
  seen.num_fresh =
      static_cast<size_t>(std::count_if(seen.fresh.begin(), seen.fresh.end(), [](auto f) { return f != 0; }));
  Read(reader.Get("numFresh"), seen.num_fresh);
  ReadColumns(reader.Get("columns"), seen);
  if (const float* adapter = seen.FindColumn("adapter"))
    seen.adapters = std::any_of(adapter, adapter + n, [](float bits) { return bits != 0; });
  Read(reader.Get("adapters"), seen.adapters);
  reader.Finish();
  seen.has_picture = n > 0;
}

std::optional<uint32_t> Find(const ReadDecision& read, const Node& node) {
  std::string address;
  Read(node, address);
  const auto& endpoints = read.endpoints;
  const auto found = std::find_if(endpoints.begin(), endpoints.end(), [&](const fleet::Endpoint& endpoint) {
    return endpoint.address == address;
  });
  if (found != endpoints.end()) return static_cast<uint32_t>(found - endpoints.begin());
  node.Error(api::Quote(address) + " is none of the picture's endpoints");
  return std::nullopt;
}

// The choice, once the endpoints are known.
void ReadOutcome(ObjectReader& reader, ReadDecision& out) {
  scheduling::Outcome& outcome = out.decision.seen.outcome;
  using Kind = scheduling::OutcomeKind;
  const Node kind = reader.Get("outcome");
  out.has_choice = kind.present();
  outcome.kind = api::ReadEnum(kind, {"picked", "shed", "no endpoint"},
                               {Kind::kPicked, Kind::kShed, Kind::kNoCandidates}, Kind::kNoCandidates);
  outcome.rung = api::ReadEnum(reader.Get("signals"), {"fresh", "ledger", "power-of-two", "any-ready"},
                               {scheduling::Rung::kFresh, scheduling::Rung::kLedger,
                                scheduling::Rung::kPowerOfTwo, scheduling::Rung::kAnyReady},
                               scheduling::Rung::kFresh);
  for (const Node& item : reader.Get("endpoints").Items(0, scheduling::kMaxChoices)) {
    if (const auto number = Find(out, item)) outcome.choices[outcome.num_choices++] = *number;
  }
  for (const Node& item : reader.Get("further").Items(0, scheduling::kMaxFurther)) {
    const auto number = Find(out, item.Child("endpoint"));
    const auto header = item.Child("header");
    if (!number || !header.Is(Value::Kind::kString)) continue;
    auto& further = outcome.further[outcome.num_further++];
    further.endpoint = *number;
    out.headers.push_back(std::make_unique<std::string>(header.value().text));
    further.header = *out.headers.back();
  }
}

}  // namespace

void ReadOptions(const Node& node, scheduling::SchedulerOptions& options) {
  ObjectReader reader(node);
  if (!reader.valid()) return;
  std::string profile;
  Read(reader.Get("profile"), profile);
  for (const scheduling::Profile known : scheduling::kProfiles) {
    if (ToString(known) == profile) options.profile = known;
  }
  EachNumber(options, [&reader](std::string_view name, auto& value) { Read(reader.Get(name), value); });
  if (const auto good = scheduling::CheckOptions(options); !good) node.Error(good.error().message);
}

std::unique_ptr<ReadDecision> ReadState(const Node& node) {
  auto out = std::make_unique<ReadDecision>();
  Decision& d = out->decision;
  if (!node.Is(Value::Kind::kMap)) {
    node.WrongType("a decision or its picture");
    return nullptr;
  }
  const Node picture = node.Child("picture");
  if (!picture.present()) {
    if (node.Child("endpoints").present() && node.Child("columns").present()) {
      ReadPicture(node, *out);
    } else {
      node.Error(
          "there is no picture: want endpoints and columns, or a decision of /debug/decisions or --record");
    }
    return d.seen.has_picture ? std::move(out) : nullptr;
  }
  ReadPicture(picture, *out);
  if (!d.seen.has_picture) return nullptr;
  ObjectReader reader(node);
  for (const auto& [field, text] : {std::pair{"requestId", &d.request_id},
                                    {"pool", &d.pool},
                                    {"model", &d.model},
                                    {"targetModel", &d.target_model},
                                    {"rewrite", &d.rewrite},
                                    {"objective", &d.objective}})
    Read(reader.Get(field), *text);
  if (const Node priority = reader.Get("priority"); priority.present()) d.priority = priority.value().text;
  if (d.priority == "0") d.priority.clear();
  Read(reader.Get("declared"), d.declared);
  d.built_in = !reader.Get("config").present();
  ReadOutcome(reader, *out);
  return out;
}

}  // namespace fairway::routing
