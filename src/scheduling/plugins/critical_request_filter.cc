// critical-request-filter: passes all endpoints for a Critical request and none for any other: the first fork
// of the criticality tree. No parameters. Source: the classic scheduler's predicate on the request
// (gateway-api-inference-extension v0.3.0, pkg/epp/scheduling).
#include <algorithm>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class CriticalRequestFilter final : public Plugin, public Filter {
 public:
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    if (!context.request.critical) return 0;
    std::copy(in.begin(), in.end(), out);
    return in.size();
  }
  std::string Why(const Context&, uint32_t) const override { return "the request is not critical"; }
};

}  // namespace

std::unique_ptr<Plugin> MakeCriticalRequestFilter(Build&) {
  return std::make_unique<CriticalRequestFilter>();
}

}  // namespace fairway::scheduling
