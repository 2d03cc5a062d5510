// utilization-filter: keeps who is at or below every limit of `conditions`, each a `metric` (active-requests,
// running-requests, waiting-queue, kv-cache-utilization) and its `maxValue`. Nobody is: it fails, or with
// `fallbackOnEmpty` (false) keeps all. The queue is the page's; open requests are the ledger's. Source: the
// reference's filter of this name (llm-d router).
#include <algorithm>
#include <array>
#include <vector>

#include "api/decode.h"
#include "api/scalars.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/lenient.h"

namespace fairway::scheduling {
namespace {

struct Metric {
  const char* name;
  std::string_view column;
};
constexpr std::array kMetrics{Metric{"active-requests", "requests"}, Metric{"running-requests", "running"},
                              Metric{"waiting-queue", "page-queue"},
                              Metric{"kv-cache-utilization", "kv-usage"}};
constexpr size_t kKvUsageMetric = 3;

class UtilizationFilter final : public Plugin, public Filter {
 public:
  explicit UtilizationFilter(Build& build)
      : falls_back_(build.Flag("fallbackOnEmpty", false, "All are kept where none would be")) {
    const auto items = build
                           .Object("conditions",
                                   "[{metric: active-requests, running-requests, waiting-queue or "
                                   "kv-cache-utilization, maxValue}], at least one")
                           .Items(0, 100);
    if (items.empty()) build.Error("conditions", "want at least one");
    for (const api::Node& item : items) Add(build, item);
    build.NoEffect({"inFlightLoadProducerName"}, kOneLedger);
  }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += std::none_of(conditions_.begin(), conditions_.end(),
                           [&](const Condition& c) { return c.Exceeded(context, position); })
                  ? 1
                  : 0;
    }
    if (kept > 0 || !falls_back_) return kept;
    std::copy(in.begin(), in.end(), out);
    return in.size();
  }
  std::string Why(const Context& context, uint32_t position) const override {
    for (const Condition& c : conditions_) {
      if (c.Exceeded(context, position))
        return std::string(c.name) + " " + Short(c.Value(context, position)) + " > " + Short(c.max);
    }
    return "";
  }

 private:
  struct Condition {
    const char* name = "";
    Column column;
    float max = 0;
    float Value(const Context& context, uint32_t position) const noexcept {
      const float* values = context.columns[column];
      return column == kRequests ? context.UnderWay(values, position) : values[position];
    }
    bool Exceeded(const Context& context, uint32_t position) const noexcept {
      return Value(context, position) > max;
    }
  };

  void Add(Build& build, const api::Node& node) {
    api::ObjectReader reader(node);
    const auto metric = api::ReadChoice(
        reader.Require("metric"), {kMetrics[0].name, kMetrics[1].name, kMetrics[2].name, kMetrics[3].name});
    const double most = metric == kKvUsageMetric ? 1 : 1e12;
    const auto max = api::ReadNumber(reader.Require("maxValue"), 0, most);
    reader.Finish();
    if (metric && max)
      conditions_.push_back(
          {kMetrics[*metric].name, build.Reads(kMetrics[*metric].column), static_cast<float>(*max)});
  }

  bool falls_back_;
  std::vector<Condition> conditions_;
};

}  // namespace

std::unique_ptr<Plugin> MakeUtilizationFilter(Build& build) {
  return std::make_unique<UtilizationFilter>(build);
}

}  // namespace fairway::scheduling
