// What a model server says of itself, out of its Prometheus text page: only the wanted families are parsed,
// the other lines cost one search for their end.
//
//   const EngineReaders engines;
//   EngineSample sample;                                  // one per loop, reused: no allocation once it has
//   grown engines.Find("vllm")->Read(page, sample); if (sample.queued) ...
//
// Formats: text exposition format 0.0.4 and OpenMetrics 1.0 (exemplars and `# EOF`). What a line of a wanted
// family has wrong makes that line not count and is counted; nothing a page holds is an error of the page.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/engine_pages.h"
#include "fleet/page_attributes.h"
#include "sources/scrape/page_place.h"
#include "sources/scrape/series.h"
#include "sources/scrape/waiting_tokens.h"

namespace fairway::sources::scrape {

using api::MetricSpec;

// One engine's names. A list holds alternatives, the preferred first; empty: the engine does not have it.
struct EngineSpec {
  std::string name;
  PageDefaults page;  // where its page is, if not at http and /metrics
  // The label of `queued` and `running` that says which model; "": they have none.
  std::string model_label;
  std::vector<MetricSpec> queued;
  std::vector<MetricSpec> running;
  std::vector<MetricSpec> kv_usage;
  // vLLM's way: the labels carry the lists and the value is the time of the last change.
  std::vector<MetricSpec> lora;
  // Cache shape, in labels of an info metric ...
  std::vector<MetricSpec> cache_info;
  std::string block_size_label;
  std::string num_blocks_label;
  // ... or as values.
  std::vector<MetricSpec> block_size;
  std::vector<MetricSpec> num_blocks;
  WaitingTokensSpec waiting_tokens;
  // Further numbers, which endpoints get as attributes (fleet/page_attributes.h) of these keys.
  struct Custom {
    std::string key;
    std::vector<MetricSpec> metric;  // one
  };
  std::vector<Custom> custom;  // at most api::EnginePage::kMaxCustom
};

// `known`, and what a config says beside or instead of it.
std::vector<EngineSpec> WithConfig(std::vector<EngineSpec> known, const api::EnginePages& pages);

// Of one engine's adapters: how many of the sample's names are its own.
struct LoraEngine {
  size_t running = 0;
  size_t waiting = 0;
  std::optional<uint32_t> max;
};

// What a page said, its engines added up (series.h). Absent: not on the page, or not usable of each engine.
struct EngineSample {
  std::optional<double> queued;    // 0 .. 1e9
  std::optional<double> running;   // 0 .. 1e9
  std::optional<double> kv_usage;  // 0 .. 1

  bool has_lora = false;
  bool lora_unknown = false;  // the family is there, and says nothing that counts
  // Names in the page's order, engine by engine, unescaped, trimmed; they point into the page or into this
  // sample, so they live until the next Read.
  std::vector<std::string_view> running_adapters;
  std::vector<std::string_view> waiting_adapters;
  std::vector<LoraEngine> lora_engines;
  std::optional<uint32_t> max_lora;  // of all engines together

  std::optional<uint32_t> block_size;  // tokens
  std::optional<uint32_t> num_blocks;

  // Models that the server says it serves: different ones, in the page's order, at most kMaxModels; what
  // adapters' names are valid for holds for them, too.
  std::vector<std::string_view> models;

  uint32_t families = 0;      // wanted lines that counted; 0: this page is of another engine, or of none
  uint32_t garbage = 0;       // values that can not be: NaN, infinite, negative, beyond the range
  uint32_t malformed = 0;     // wanted lines that are no samples
  bool load_unknown = false;  // of queued and running, what the engine has and the page did not say
  bool kv_unknown = false;    // the same of its KV use
  uint32_t missing = 0;       // of queued, running, KV use: what the engine has and the page did not say

  std::vector<float> custom;  // of EngineSpec::custom; no number: it did not say it

  // Not for callers: storage of adapter names with escapes, and of lines until they are added up.
  std::string unescaped;
  std::string unescaped_models;
  std::array<SeriesLines, 7 + api::EnginePage::kMaxCustom> lines;
  SeriesScratch scratch;
};

// Running and waiting adapter names beyond this are not taken from a page (a page is untrusted): they count
// as garbage.
inline constexpr size_t kMaxAdaptersPerList = 4096;
// Models beyond this are not taken: their names are in nobody's way, and no server has as many.
inline constexpr size_t kMaxModels = 64;

// Immutable, so thread-safe. Reading costs little more than finding the page's line ends.
class PageReader {
 public:
  explicit PageReader(EngineSpec spec);
  PageReader(const PageReader&) = delete;
  PageReader& operator=(const PageReader&) = delete;

  // Overwrites `sample`.
  void Read(std::string_view page, EngineSample& sample) const;

  const std::string& engine() const { return spec_.name; }
  const std::vector<uint64_t>& custom_keys() const { return custom_keys_; }  // of EngineSample::custom
  const PageDefaults& page() const { return spec_.page; }
  const WaitingTokensSpec& waiting_tokens() const { return spec_.waiting_tokens; }

 private:
  enum Field : uint8_t { kQueued, kRunning, kKvUsage, kLora, kCacheInfo, kBlockSize, kNumBlocks, kCustom };
  struct Use {
    uint8_t field;  // Field; kCustom and what is above it are the custom ones in their order
    uint8_t rank;   // place among the alternatives: lower wins
    const MetricSpec* spec;
  };
  struct Family {
    std::string name;
    std::vector<Use> uses;
  };
  void AddUses(uint8_t field, const std::vector<MetricSpec>& alternatives);
  void ReadLine(const Family& family, std::string_view rest, EngineSample& sample) const;
  static bool ReadNumbers(std::string_view rest, SeriesLine& line);
  void AddUp(EngineSample& sample) const;
  static void AddModel(std::string_view raw, EngineSample& sample);

  EngineSpec spec_;
  std::vector<uint64_t> custom_keys_;
  bool only_custom_ = false;  // nothing else on a page says that it is this engine's
  std::vector<Family> families_;
  std::vector<std::string> selecting_;   // names of labels that say which series of a family is meant
  size_t common_ = 0;                    // length of the prefix that all names share
  std::array<uint64_t, 256> by_byte_{};  // families by the byte after it (bit: number of the family)
};

// The engines of the reference (by its names of engines), or the ones given. Immutable,
// so thread-safe.
class EngineReaders {
 public:
  EngineReaders();
  explicit EngineReaders(std::vector<EngineSpec> specs);  // REQUIRES: not empty; the first is the default

  // Null: no engine has this name.
  const PageReader* Find(std::string_view engine) const;
  const PageReader& fallback() const { return *readers_.front(); }
  // The engine of whose signals most are on the page, for servers that carry no label; null: none. Costs a
  // Read per engine, so it is for pages that the default could not read, and its answer is kept.
  const PageReader* Detect(std::string_view page, EngineSample& scratch) const;
  // An engine whose page is at another path than `path`; null: there is none.
  const PageReader* Elsewhere(std::string_view path) const;

 private:
  std::vector<std::unique_ptr<PageReader>> readers_;
};

std::vector<EngineSpec> BuiltinEngines();

}  // namespace fairway::sources::scrape
