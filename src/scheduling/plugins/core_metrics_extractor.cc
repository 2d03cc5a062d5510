// core-metrics-extractor: how engines' metrics pages are read. `engineLabelKey` (llm-d.ai/engine-type): the
// label that names an endpoint's engine, `defaultEngine` (vllm): that of endpoints without it,
// `engineConfigs[]`: names of an engine's metrics, beside or instead of those that are known. Each of its
// `customMetrics[]` {attributeKey, metricSpec} makes the column "KEY/NAME" of this instance's name, which
// endpoint-attribute-filter and -scorer read; an endpoint whose page did not say it has none. Source: the
// reference's extractor of this name (llm-d router), where an engine of a known name loses what the config does
// not repeat.
#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/decode.h"
#include "api/engine_pages.h"
#include "fleet/page_attributes.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

constexpr size_t kMaxEngines = 100;

std::optional<api::MetricSpec> ReadSpec(const api::Node& node) {
  const auto text = node.Text();
  if (!text || text->empty()) return std::nullopt;
  auto spec = api::ParseMetricSpec(*text);
  if (!spec) {
    node.Error(spec.error().message);
    return std::nullopt;
  }
  return std::move(*spec);
}

void ReadCustom(const api::Node& node, api::EnginePage& engine) {
  for (const api::Node& item : node.Items(0, api::EnginePage::kMaxCustom)) {
    api::ObjectReader reader(item);
    const api::Node key = reader.Require("attributeKey");
    const auto name = key.Text();
    const api::Node spec = reader.Require("metricSpec");
    auto metric = ReadSpec(spec);
    if (spec.Is(api::Value::Kind::kString) && spec.value().text.empty())
      spec.Error("want a metric, as name or name{label=value,...}");
    reader.Finish();
    if (!name || !metric) continue;
    if (name->empty() || name->find('/') != std::string::npos) {
      key.Error("want a name without a \"/\", got " + api::Quote(*name));
      continue;
    }
    const auto same = [&](const auto& custom) { return custom.key == *name; };
    if (std::any_of(engine.custom.begin(), engine.custom.end(), same))
      key.Error(api::Quote(*name) + " is there twice");
    engine.custom.push_back({*name, std::move(*metric)});
  }
}

api::EnginePage ReadEngine(const api::Node& node) {
  api::EnginePage engine;
  api::ObjectReader reader(node);
  const api::Node name = reader.Require("name");
  engine.name = name.Text().value_or("");
  if (name.present() && (engine.name.empty() || engine.name == "default"))
    name.Error("want the name of an engine, not " + api::Quote(engine.name));
  engine.queued = ReadSpec(reader.Get("queuedRequestsSpec"));
  engine.running = ReadSpec(reader.Get("runningRequestsSpec"));
  engine.kv_usage = ReadSpec(reader.Get("kvUsageSpec"));
  engine.lora = ReadSpec(reader.Get("loraSpec"));
  engine.cache_info = ReadSpec(reader.Get("cacheInfoSpec"));
  engine.block_size = ReadSpec(reader.Get("cacheBlockSizeSpec"));
  engine.num_blocks = ReadSpec(reader.Get("cacheNumBlocksSpec"));
  engine.block_size_label = reader.Get("cacheBlockSizeLabelName").Text().value_or("");
  engine.num_blocks_label = reader.Get("cacheNumBlocksLabelName").Text().value_or("");
  for (const char* field : {"loraLoadedSpec", "loraGPULoadedSpec", "loraGPUSlotsSpec"}) {
    if (const api::Node node_of = reader.Get(field); node_of.present())
      node_of.Warn("has no effect here: adapters are known by loraSpec and by what was sent there");
  }
  ReadCustom(reader.Get("customMetrics"), engine);
  reader.Finish();
  return engine;
}

class CoreMetricsExtractor : public Plugin, public PageSettings {
 public:
  explicit CoreMetricsExtractor(std::shared_ptr<const api::EnginePages> pages) : pages_(std::move(pages)) {}
  const std::shared_ptr<const api::EnginePages>& pages() const noexcept override { return pages_; }
  bool HasAttribute(std::string_view name) const noexcept override {
    const auto has = [name](const api::EnginePage& engine) {
      return std::any_of(engine.custom.begin(), engine.custom.end(),
                         [name](const auto& custom) { return custom.key == name; });
    };
    return std::any_of(pages_->engines.begin(), pages_->engines.end(), has);
  }

 private:
  std::shared_ptr<const api::EnginePages> pages_;
};

class CustomMetrics final : public CoreMetricsExtractor, public Producer {
 public:
  CustomMetrics(Build& build, std::shared_ptr<const api::EnginePages> pages,
                const std::vector<std::string>& keys)
      : CoreMetricsExtractor(std::move(pages)) {
    for (const std::string& key : keys)
      made_.emplace_back(build.Makes(key + "/" + build.name(), Lifetime::kRequest, Unit::kCount),
                         fleet::PageAttributes::KeyOf(key));
  }
  void Make(const Context& context, float* const* made) const noexcept override {
    const auto endpoint = context.columns.endpoint;
    for (size_t i = 0; i < endpoint.size(); ++i) {
      const fleet::PageAttributes* said =
          context.pool != nullptr ? context.pool->cells[endpoint[i]]->attributes() : nullptr;
      for (const auto& [column, key] : made_)
        made[column.id][i] = said != nullptr ? said->Get(key) : std::numeric_limits<float>::quiet_NaN();
    }
  }

 private:
  std::vector<std::pair<Column, uint64_t>> made_;
};

}  // namespace

std::unique_ptr<Plugin> MakeCoreMetricsExtractor(Build& build) {
  auto pages = std::make_shared<api::EnginePages>();
  pages->label =
      build.Text("engineLabelKey", "llm-d.ai/engine-type", "Label that names an endpoint's engine");
  pages->default_engine = build.Text("defaultEngine", "vllm", "Engine of endpoints without the label");
  const std::vector<std::string> known(api::kKnownEngines.begin(), api::kKnownEngines.end());
  std::vector<std::string> names = known;
  const api::Node configs =
      build.Object("engineConfigs",
                   "Names of engines' metrics, beside those that are known: [{name, queuedRequestsSpec, "
                   "runningRequestsSpec, kvUsageSpec, loraSpec, cacheInfoSpec, cacheBlockSizeLabelName, "
                   "cacheNumBlocksLabelName, cacheBlockSizeSpec, cacheNumBlocksSpec, customMetrics: "
                   "[{attributeKey, metricSpec}]}]. A spec is NAME or NAME{label=value,...}; only name is "
                   "required, such as [{name: vllm, customMetrics: [{attributeKey: Heat, metricSpec: "
                   "\"gpu_temperature{gpu=0}\"}]}]");
  for (const api::Node& item : configs.Items(0, kMaxEngines)) {
    const api::EnginePage& engine = pages->engines.emplace_back(ReadEngine(item));
    const auto is_it = [&](const api::EnginePage& e) { return e.name == engine.name; };
    if (std::count_if(pages->engines.begin(), pages->engines.end(), is_it) > 1)
      item.Child("name").Error(api::Quote(engine.name) + " is there twice");
    names.push_back(engine.name);
    // What is mistyped is no error: it is an engine of the user's, which no endpoint may have.
    const bool is_known = std::find(known.begin(), known.end(), engine.name) != known.end();
    if (const std::string near = api::DidYouMean(engine.name, known);
        !is_known && engine.name != pages->default_engine && !near.empty())
      item.Child("name").Warn(api::Quote(engine.name) +
                              " is an engine that is not known: of endpoints that carry this name in label " +
                              pages->label + near);
  }
  const std::vector<std::string> keys = api::AttributesOf(*pages);
  if (std::find(names.begin(), names.end(), pages->default_engine) == names.end())
    build.Error("defaultEngine", "there is no engine " + api::Quote(pages->default_engine) +
                                     api::DidYouMean(pages->default_engine, names));
  if (keys.size() > fleet::PageAttributes::kMost)
    build.Error("engineConfigs", "want at most " + std::to_string(fleet::PageAttributes::kMost) +
                                     " different attributeKeys, got " + std::to_string(keys.size()));
  if (keys.empty()) return std::make_unique<CoreMetricsExtractor>(std::move(pages));
  return std::make_unique<CustomMetrics>(build, std::move(pages), keys);
}

}  // namespace fairway::scheduling
