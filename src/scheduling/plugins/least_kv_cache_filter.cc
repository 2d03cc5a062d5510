// least-kv-cache-filter: keeps the least used KV caches: values within min .. min + (max - min) / n.
// No parameters. Source: gateway-api-inference-extension v0.3.0, filter.go; see least.h.
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/least.h"

namespace fairway::scheduling {
namespace {

class LeastKvCacheFilter final : public Filter {
 public:
  std::string_view type() const noexcept override { return "least-kv-cache-filter"; }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    return KeepLeast(context.columns.kv_usage, in, out);
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return "KV use " + Percent(context.columns.kv_usage[position]) + " is not among the least";
  }
};

}  // namespace

std::unique_ptr<Filter> MakeLeastKvCacheFilter(Parameters&) { return std::make_unique<LeastKvCacheFilter>(); }

}  // namespace fairway::scheduling
