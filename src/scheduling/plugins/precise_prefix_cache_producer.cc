// precise-prefix-cache-producer: wants engines' KV events (ZeroMQ), which correct what
// approx-prefix-cache-producer believes; that one is made where the config has none. `kvEventsConfig`:
// `topicFilter` (kv@), `discoverPods` (true), `podDiscoveryConfig`: `socketPort` (5557), `replaySocketPort`
// (0: no replay), `podNamespace` (any), `podLabelSelector` (labels that an endpoint must have: none where it
// is not given, since who is in the pool is known).
//
// Source: the reference's producer of this name (llm-d router), which has an exact index by tokens that it
// gets from a render server. Fairway has none of tokens: what is not given by events (which prompts these
// blocks are) stays believed by what was sent where.
#include <string>
#include <string_view>

#include "api/scalars.h"
#include "base/strings.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

constexpr std::string_view kNoIndex =
    "prompts are matched by their text and what was sent where; events correct how much an engine holds";

class PrecisePrefixCacheProducer final : public Plugin, public KvEventsReader {
 public:
  explicit PrecisePrefixCacheProducer(Build& build) {
    // So that there is a belief to correct, and who names this producer reads it.
    build.ReadsOptional(kCachedTokens, true);
    build.NoEffect({"tokenProcessorConfig", "indexerConfig", "speculativeIndexing", "speculativeTTL"},
                   kNoIndex);
    const api::Node node = build.Object(
        "kvEventsConfig", "Where engines publish KV events: {topicFilter, discoverPods, podDiscoveryConfig}");
    api::ObjectReader reader(node);
    const api::Node central = reader.Get("zmqEndpoint");
    if (central.present()) central.Warn("has no effect here: each Pod is asked, at socketPort");
    const api::Node engine = reader.Get("engineType");
    if (const auto type = engine.Text(); type && *type != "vllm" && *type != "sglang")
      engine.Error("must be vllm or sglang, not " + *type);
    reader.Ignore({"concurrency"});
    where_.topic = reader.Get("topicFilter").Text().value_or("kv@");
    const api::Node discover = reader.Get("discoverPods");
    wanted_ = api::ReadBoolean(discover).value_or(true);
    if (!wanted_) discover.Warn("no KV events are read: Fairway asks each Pod");
    ReadDiscovery(reader.Get("podDiscoveryConfig"));
    if (node.present()) reader.Finish();
  }
  const Where* kv_events() const noexcept override { return wanted_ ? &where_ : nullptr; }

 private:
  void ReadDiscovery(const api::Node& node) {
    api::ObjectReader reader(node);
    const auto port = [&](std::string_view field, int64_t otherwise, int64_t least) {
      return static_cast<uint16_t>(reader.Get(field).Integer(least, 65535).value_or(otherwise));
    };
    where_.port = port("socketPort", 5557, 1);
    where_.replay_port = port("replaySocketPort", 0, 0);
    where_.namespace_name = reader.Get("podNamespace").Text().value_or("");
    const api::Node selector = reader.Get("podLabelSelector");
    ReadSelector(selector, selector.Text().value_or(""));
    if (node.present()) reader.Finish();
  }

  // key=value, separated by commas.
  void ReadSelector(const api::Node& node, std::string_view text) {
    if (text.empty()) return;
    for (const std::string_view piece : base::Split(text, ',')) {
      const std::string_view one = base::Trim(piece);
      const size_t equals = one.find('=');
      const bool plain = equals != std::string_view::npos && equals > 0 && one[equals - 1] != '!';
      if (!plain) {
        node.Error("must be labels as key=value, separated by commas");
        return;
      }
      const std::string_view value = one.substr(equals + (one.substr(equals).starts_with("==") ? 2 : 1));
      where_.labels.emplace(one.substr(0, equals), value);
    }
  }

  Where where_;
  bool wanted_ = true;
};

}  // namespace

std::unique_ptr<Plugin> MakePrecisePrefixCacheProducer(Build& build) {
  return std::make_unique<PrecisePrefixCacheProducer>(build);
}

}  // namespace fairway::scheduling
