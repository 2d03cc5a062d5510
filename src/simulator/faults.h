// What can be made to go wrong on a simulated server, and metrics pinned to fixed values: for tests and
// demos.
//
// As JSON (POST /sim/faults; absent fields stay as they are, "pin": null unpins):
//   {"endpoint": "8101", "requests": "hang", "metrics": "garbage", "for_ms": 500,
//    "pin": {"waiting": 10, "running": 3, "kv": 0.3, "running_lora": ["x"], "waiting_lora": [], "max_lora":
//    4}}
// As text (fairway sim --fault, --pin; without "8101:" it counts for every endpoint):
//   8101:requests=hang,metrics=garbage         8101:waiting=10,kv=0.3,running_lora=a|b
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/value.h"
#include "base/clock.h"
#include "base/result.h"

namespace fairway::simulator {

enum class RequestFault {
  kNone,
  kRefuse,  // the listener and all connections are closed, what was under way is aborted: as a process that
            // died
  kHang,    // requests are read and never answered
  kFail,    // 500
  kCut,     // the connection is closed after the first token
};

enum class MetricsFault { kNone, kGarbage, kEmpty, kNotFound, kError, kHang, kRedirect, kHuge };

// Shown by /metrics in place of the engine's own values; requests are served as ever.
struct PinnedMetrics {
  std::optional<double> waiting;
  std::optional<double> running;
  std::optional<double> kv_usage;  // 0..1
  std::optional<std::vector<std::string>> running_lora;
  std::optional<std::vector<std::string>> waiting_lora;
  std::optional<uint32_t> max_lora;

  bool pins_lora() const { return running_lora || waiting_lora || max_lora; }
  // Takes the values that `other` has.
  void Merge(const PinnedMetrics& other);
};

struct Faults {
  RequestFault requests = RequestFault::kNone;
  MetricsFault metrics = MetricsFault::kNone;
  PinnedMetrics pin;
};

struct FaultPatch {
  std::optional<RequestFault> requests;
  std::optional<MetricsFault> metrics;
  std::optional<PinnedMetrics> pin;  // takes the place of all that is pinned
  base::Nanos duration = 0;          // then all is as it was before; 0: until told otherwise
};

// What `patch` makes of `faults`; its duration is the caller's business.
Faults Apply(Faults faults, const FaultPatch& patch);

struct TargetedPatch {
  std::string endpoint;  // its name, port or host:port; "": the one asked, or all
  FaultPatch patch;
};

// Unknown fields, unknown values and wrong types are errors that say what would be right.
base::Result<TargetedPatch> FaultsFromJson(const api::Value& json);
base::Result<TargetedPatch> FaultsFromText(std::string_view text);
base::Result<TargetedPatch> PinFromText(std::string_view text);

// In the form FaultsFromJson reads.
std::string ToJson(const Faults& faults);

}  // namespace fairway::simulator
