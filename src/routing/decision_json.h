// A decision as JSON, and what was recorded read back from it: the page /debug/decisions, the files of
// `--record`, the state that `fairway explain` asks again.
//
//   {"requestId":"r-1", ..., "endpoints":["10.0.0.2:8000"], "why":"...", "candidates":[...],
//   "profiles":[...],
//    "steps":[...],
//    "picture":{"request":{...}, "generator":[...], "endpoints":[{"name":...,"address":...},...],
//               "own":[...], "fresh":[...], "pageAgeMs":[...], "columns":{"requests":[...], ...}}}
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/decode.h"
#include "base/json_writer.h"
#include "routing/decision.h"

namespace fairway::routing {

inline constexpr size_t kMaxListed = 100;  // endpoints of one list, but for the picture

// The members of one decision with its reasons, without the picture.
void WriteReasons(const Told& told, base::JsonWriter& json);
// What the request hits: the members of one decision for /debug/prefix.
void WritePrefixes(const Told& told, base::JsonWriter& json);
// The member "picture", where there is one. `with_options`: and by which options was decided.
void WritePicture(const Decision& decision, base::JsonWriter& json, bool with_options = true);
void WriteOptions(const scheduling::SchedulerOptions& options, base::JsonWriter& json);
// A line of a record: what was asked, the choice, the picture, with the newline.
std::string RecordLine(const Decision& decision);
// The first line of a record.
std::string RecordHeader(const scheduling::SchedulerOptions& options);

// As RecordHeader wrote it; what is not there stays. A mistake is reported.
void ReadOptions(const api::Node& node, scheduling::SchedulerOptions& options);

// Calls f(name, value) with each number of the options.
template <typename Options, typename F>
void EachNumber(Options& o, F f) {
  f("criticalQueueLimit", o.critical_queue_limit);
  f("sheddableQueueLimit", o.sheddable_queue_limit);
  f("sheddableKvLimit", o.sheddable_kv_limit);
  f("sheddableWorkLimit", o.sheddable_work_limit);
  f("loraExploration", o.lora_exploration);
  f("loraLoadCost", o.lora_load_cost);
  f("requestCost", o.request_cost);
  f("tolerance", o.tolerance);
  f("unseenTolerance", o.unseen_tolerance);
  f("trustInOthers", o.trust_in_others);
  f("prefixCache", o.prefix_cache);
  f("maxChoices", o.max_choices);
  f("freshForNs", o.fresh_for);
  f("ledgerTrustNs", o.ledger_trust);
}

// What was read. Endpoints have their labels where the text names some.
struct ReadDecision {
  Decision decision;
  std::vector<fleet::Endpoint> endpoints;
  bool has_choice = false;                            // of the outcome: a picture alone has none
  std::vector<std::unique_ptr<std::string>> headers;  // what the outcome's further places refer to
};

// A decision, or its picture alone. Null where it cannot be, which is reported.
std::unique_ptr<ReadDecision> ReadState(const api::Node& node);

}  // namespace fairway::routing
