// least-kv-cache-filter: keeps the lowest KV cache uses: values within min .. min + (max - min) / n, and all
// up to `floor` (0). Source: gateway-api-inference-extension v0.3.0, filter.go, which has no floor; see
// least.h. Ours is for several pickers: a cache with room answers no sooner for having more of it, and they
// all follow the same late figure (replay of the tree with 4 pickers, unique prompts: mean time to first
// token 541 ms without a floor, 267 with 0.8).
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/least.h"

namespace fairway::scheduling {
namespace {

class LeastKvCacheFilter final : public Plugin, public Filter {
 public:
  explicit LeastKvCacheFilter(Build& build)
      : kv_usage_(build.Reads("kv-usage")),
        floor_(build.Float("floor", 0, 0, 1, "KV use below this share is all alike")) {}
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    return KeepLeast(context.columns[kv_usage_], in, floor_, out);
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return "KV use " + Percent(context.columns[kv_usage_][position]) + " is not among the least";
  }

 private:
  Column kv_usage_;
  float floor_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLeastKvCacheFilter(Build& build) {
  return std::make_unique<LeastKvCacheFilter>(build);
}

}  // namespace fairway::scheduling
