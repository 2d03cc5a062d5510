// header-label-affinity-scorer: 1 where the label `labelKey` has the value of the request's header
// `headerName`, else 0. Both must be given. Source: the reference's scorer of this name (llm-d router).
#include "scheduling/plugin.h"
#include "scheduling/plugins/keys.h"

namespace fairway::scheduling {
namespace {

class HeaderLabelAffinityScorer final : public Plugin, public Scorer, public EndpointProducer {
 public:
  explicit HeaderLabelAffinityScorer(Build& build)
      : label_(build.Text("labelKey", "", "Label of endpoints, required")), value_(build, "label") {
    const std::string header =
        build.Text("headerName", "", "Header of requests whose value is compared with the label's, required");
    if (label_.empty()) build.Error("labelKey", "must be set");
    if (header.empty()) {
      build.Error("headerName", "must be set");
    } else {
      header_ = build.WantsHeader(header);
    }
  }
  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    const auto found = endpoint.labels.find(label_);
    return value_.Value(column, found == endpoint.labels.end() ? 0 : KeyOf(found->second));
  }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const uint64_t wanted = KeyOf(context.request.header(header_));
    for (size_t i = 0; i < in.size(); ++i)
      out[i] = wanted != 0 && value_.At(context.columns, in[i]) == wanted ? 1.0f : 0.0f;
  }

 private:
  std::string label_;
  KeyColumns value_;
  std::string header_;
};

}  // namespace

std::unique_ptr<Plugin> MakeHeaderLabelAffinityScorer(Build& build) {
  return std::make_unique<HeaderLabelAffinityScorer>(build);
}

}  // namespace fairway::scheduling
