// header-based-testing-filter: keeps the endpoints that the request's header test-epp-endpoint-selection
// lists by address, "ip" or "ip:port", separated by commas; without the header: nobody. For conformance
// tests. Source: the reference's filter of this name (llm-d router).
#include "base/strings.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/keys.h"

namespace fairway::scheduling {
namespace {

class HeaderBasedTestingFilter final : public Plugin, public Filter, public EndpointProducer {
 public:
  explicit HeaderBasedTestingFilter(Build& build)
      : header_(build.WantsHeader("test-epp-endpoint-selection")),
        host_(build, "host"),
        address_(build, "address") {}
  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    return host_.Has(column) ? host_.Value(column, KeyOf(endpoint.host))
                             : address_.Value(column, KeyOf(endpoint.address));
  }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += Listed(context, position) ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context&, uint32_t) const override { return "the header does not list it"; }

 private:
  bool Listed(const Context& context, uint32_t position) const noexcept {
    std::string_view left = context.request.header(header_);
    while (!left.empty()) {
      const size_t end = std::min(left.find(','), left.size());
      std::string_view item = base::Trim(left.substr(0, end));
      left.remove_prefix(std::min(end + 1, left.size()));
      if (item.empty()) continue;
      if (KeyOf(item) == address_.At(context.columns, position)) return true;
      if (item.front() == '[' && item.back() == ']') item = item.substr(1, item.size() - 2);
      if (KeyOf(item) == host_.At(context.columns, position)) return true;
    }
    return false;
  }

  std::string header_;
  KeyColumns host_, address_;
};

}  // namespace

std::unique_ptr<Plugin> MakeHeaderBasedTestingFilter(Build& build) {
  return std::make_unique<HeaderBasedTestingFilter>(build);
}

}  // namespace fairway::scheduling
