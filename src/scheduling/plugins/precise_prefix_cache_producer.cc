// precise-prefix-cache-producer: where engines' KV events are read (ZeroMQ) and a request's tokens are known,
// what is cached is not believed but known: "cached-tokens" and "prefix-match" are then those of the longest
// run of blocks, from the prompt's first on, that the engine has told of. For other requests and engines
// approx-prefix-cache-producer says what it believes, corrected by the same events; it is made where the
// config has none. Of an engine that was there before its events were followed, and could not replay them,
// the larger of both counts.
//
// A request's tokens are those of its body, or token-producer gets them from a render server of vLLM.
// `tokenProcessorConfig`: `blockSizeTokens` (16; `blockSize` is its old name): tokens of a block, of which an
// engine's are a multiple; `hashAlgorithm` (cbor-fnv, or xxh64, which is faster), `hashSeed`: of keys, which
// are made of tokens on both sides, whatever engines hash by.
// `indexerConfig`: `kvCacheBackendConfigs`: `name` and `weight` of tiers (gpu 1, cpu 0.8; others 1), which
// "prefix-match" counts by; `kvBlockIndexConfig.costAwareMemoryConfig.size`: the index's bytes.
// `memory` (268,435,456) is the same, for who does not say it so. `speculativeIndexing` (false): a prompt
// counts as cached where it was sent, for `speculativeTTL` (2s) or until events say it.
// `kvEventsConfig`: `zmqEndpoint` (none): where engines may dial, as tcp://*:5557; `topicFilter` (kv@),
// `discoverPods` (true): Pods are asked; `podDiscoveryConfig`: `socketPort` (5557),
// `replaySocketPort` (0: no replay), `podNamespace` (any), `podLabelSelector` (labels that an endpoint must
// have: none where it is not given, since who is in the pool is known).
//
// precise-prefix-cache-scorer, its older form, is the same and a scorer: the share that matches.
//
// Source: the reference's plugins of these names (llm-d router).
#include <arpa/inet.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/scalars.h"
#include "base/strings.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/engine_caches.h"
#include "scheduling/plugins/prefix.h"

namespace fairway::scheduling {
namespace {

constexpr float kNoSource = -1;

// What outlives a config: the caches, and what they were made for.
struct KeptCaches {
  std::mutex mutex;
  std::string made_for;
  std::shared_ptr<EngineCaches> caches;
};

// Of one worker.
struct ExactLookup {
  prefix::ExactIndex::Scratch scratch;
  std::vector<prefix::ExactMatch> matches;
  std::vector<prefix::MediaTokens> media;
  std::vector<uint64_t> chain;  // of all prompts of the request under way
  std::vector<uint32_t> ends;   // of each in it
  uint64_t plain_key = 0;       // of the first block, without what is beside its tokens
  struct Found {
    uint32_t blocks = 0;
    float weight = 0;
  };
  std::vector<Found> found;                               // by an endpoint's first source; zeros between uses
  std::vector<uint16_t> found_list;                       // those that are not
  std::vector<std::pair<uint16_t, base::Nanos>> put_off;  // whom to speculate of, until when
};

class PrecisePrefixCache : public Plugin,
                           public KvEventsReader,
                           public Producer,
                           public EndpointProducer,
                           public RequestHook,
                           public CacheHook,
                           public ExactBelief {
 public:
  explicit PrecisePrefixCache(Build& build) {
    prefix::ExactOptions options;
    options.bytes = static_cast<size_t>(build.Integer("memory", 256 << 20, 1 << 20, int64_t{1} << 40,
                                                      "Bytes for all blocks that engines told of"));
    ReadTokenProcessor(build, options);
    ReadIndexer(build, options);
    speculates_ =
        build.Flag("speculativeIndexing", false, "What was just sent counts as cached before events say so");
    ttl_ = build.Duration("speculativeTTL", 2 * base::kSecond, base::kMillisecond, 3600 * base::kSecond,
                          "For so long");
    ReadEvents(build);
    // What it corrects: it runs behind who makes it.
    cached_ = build.ReadsOptional(kCachedTokens, true);
    match_ = build.ReadsOptional(kPrefixMatch, true);
    likely_ = build.ReadsOptional(kLikelyCachedTokens, true);
    source_ = build.Makes(build.Own("source"), Lifetime::kSnapshot, Unit::kCount);
    blocks_ = build.Makes(build.Own("blocks"), Lifetime::kRequest, Unit::kCount);
    build.WantsTokens();
    lookup_ = build.PerWorker<ExactLookup>();
    const auto kept = build.Remember<KeptCaches>([] { return std::make_shared<KeptCaches>(); });
    const std::lock_guard lock(kept->mutex);
    const std::string made_for = Describe(options);
    if (kept->caches == nullptr || kept->made_for != made_for) {
      kept->caches = std::make_shared<EngineCaches>(options);
      kept->made_for = made_for;
    }
    caches_ = kept->caches;
    where_.reader = caches_->number;
  }
  const Where* kv_events() const noexcept override { return wanted_ ? &where_ : nullptr; }

  float Value(Column, const fleet::Endpoint& endpoint) const override {
    const auto source = caches_->SourceOf(endpoint.cell);
    return source ? static_cast<float>(*source) : kNoSource;
  }

  void Make(const Context& context, float* const* made) const noexcept override {
    ExactLookup& lookup = lookup_.Get(context.worker);
    lookup.chain.clear();
    lookup.ends.clear();
    const Facts& request = context.request;
    if (request.prompts.tokens == nullptr || request.prompts.tokens->ends.empty()) return;
    MakeChains(request, lookup);
    if (lookup.chain.empty()) return;
    const LookupTimes* times = context.lookup_times;
    const base::Nanos begun = times != nullptr ? times->clock->Now() : 0;
    Find(lookup);
    if (times != nullptr) times->seconds->Observe(base::ToSeconds(times->clock->Now() - begun));
    const auto total = static_cast<float>(lookup.chain.size());
    const auto block = static_cast<float>(caches_->index.keys().block_tokens());
    const auto prompt = static_cast<float>(request.prompt_tokens);
    const float* sources = context.columns[source_];
    for (size_t i = 0; i < context.columns.size(); ++i) {
      if (sources[i] < 0) continue;
      const auto source = static_cast<uint16_t>(sources[i]);
      const ExactLookup::Found found = lookup.found[source];
      made[blocks_.id][i] = static_cast<float>(found.blocks);
      const EngineCaches::Known known = caches_->known(source);
      if (known == EngineCaches::Known::kNothing && found.blocks == 0) continue;
      const float tokens = std::min(static_cast<float>(found.blocks) * block, prompt);
      // Whole blocks, as the reference counts; the sum of weights is not exact.
      const float match = std::floor(found.weight + 1e-3f) / total;
      const bool alone = known == EngineCaches::Known::kAll;
      const auto correct = [i, alone, made](Column column, float value) {
        made[column.id][i] = alone ? value : std::max(made[column.id][i], value);
      };
      correct(cached_, tokens);
      correct(likely_, tokens);
      correct(match_, match);
    }
    for (const uint16_t source : lookup.found_list) lookup.found[source] = {};
    lookup.found_list.clear();
  }

  void Picked(const Context& context, uint32_t position, const fleet::Endpoint&) const noexcept override {
    ExactLookup& lookup = lookup_.Get(context.worker);
    const float column = context.columns[source_][position];
    if (lookup.chain.empty() || column < 0) return;
    const auto source = static_cast<uint16_t>(column);
    caches_->Asked(source, lookup.chain.front(), lookup.plain_key, context.columns[blocks_][position] > 0);
    if (speculates_ && lookup.put_off.size() < kMostPutOff)
      lookup.put_off.emplace_back(source, context.now + ttl_);
  }
  void PickedBeside(const Context& context, std::string_view profile, uint32_t position,
                    const fleet::Endpoint& endpoint) const noexcept override {
    if (profile == "prefill") Picked(context, position, endpoint);
  }
  bool HasPutOff(std::span<const std::shared_ptr<void>> worker) const noexcept override {
    return !lookup_.Get(worker).put_off.empty();
  }
  std::function<void()> TakePutOff(std::span<const std::shared_ptr<void>> worker,
                                   const std::shared_ptr<const Prompts>&) const override {
    ExactLookup& lookup = lookup_.Get(worker);
    return [caches = caches_, chain = std::exchange(lookup.chain, {}), ends = std::exchange(lookup.ends, {}),
            put_off = std::exchange(lookup.put_off, {})] {
      for (const auto& [source, until] : put_off) {
        uint32_t begin = 0;
        for (const uint32_t end : ends) {
          caches->Speculate(source, std::span(chain).subspan(begin, end - begin), until);
          begin = end;
        }
      }
    };
  }

  void Emptied(const fleet::EndpointCell& cell) const noexcept override { caches_->Clear(cell); }
  void Stored(const fleet::EndpointCell& cell, int64_t rank,
              const prefix::StoredBlocks& stored) const noexcept override {
    caches_->Store(cell, rank, stored);
  }
  void Removed(const fleet::EndpointCell& cell, int64_t rank, std::span<const uint64_t> blocks,
               std::string_view tier) const noexcept override {
    caches_->Remove(cell, rank, blocks, tier);
  }
  void Knows(const fleet::EndpointCell& cell, bool all) const noexcept override { caches_->Knows(cell, all); }
  std::string WhyUnmatched(const fleet::EndpointCell& cell) const override {
    return caches_->WhyUnmatched(cell);
  }
  std::optional<EngineView> View(const fleet::EndpointCell& cell) const override {
    return caches_->View(cell);
  }
  void Tick(base::Nanos now) const noexcept override {
    if (speculates_) caches_->index.Expire(now);
  }

  Totals totals() const override {
    const prefix::ExactStats stats = caches_->index.stats();
    return {.admissions = stats.stored,
            .evictions = stats.removed + stats.evicted,
            .lookups = caches_->lookups.load(std::memory_order_relaxed),
            .hits = caches_->hits.load(std::memory_order_relaxed),
            .blocks = stats.blocks,
            .held = stats.held,
            .bytes = stats.bytes,
            .most_bytes = stats.most_bytes,
            .refused = stats.refused};
  }

 protected:
  Column match_;

 private:
  static constexpr size_t kMostPutOff = 2;  // the profile that answers and one that prefills

  static std::string Describe(const prefix::ExactOptions& options) {
    std::string text = std::to_string(options.bytes) + " " + std::to_string(options.keys.block_tokens()) +
                       " " + std::to_string(options.keys.Root(""));
    for (const auto& [name, weight] : options.tiers) text += " " + name + " " + std::to_string(weight);
    return text;
  }

  void MakeChains(const Facts& request, ExactLookup& lookup) const {
    const prefix::BlockKeys& keys = caches_->index.keys();
    const bool adapter = request.adapter != fleet::kNoAdapter || caches_->IsAdapter(request.target_model);
    const uint64_t root = keys.Root(adapter ? request.target_model : std::string_view());
    const payload::PromptTokens& prompts = *request.prompts.tokens;
    const std::string& salt = request.prompts.cache_salt;
    const std::span<const uint32_t> tokens = prompts.tokens;
    uint32_t begin = 0;
    auto media = prompts.media.begin();
    for (uint32_t prompt = 0; prompt < prompts.ends.size(); ++prompt) {
      const uint32_t end = prompts.ends[prompt];
      lookup.media.clear();
      for (; media != prompts.media.end() && media->prompt == prompt; ++media)
        lookup.media.push_back({media->hash, media->begin, media->end});
      const size_t before = lookup.chain.size();
      const auto of_prompt = tokens.subspan(begin, end - begin);
      prefix::AppendKeys(keys, root, of_prompt, lookup.media, salt, lookup.chain);
      if (before == 0 && !lookup.chain.empty()) {
        const bool plain = !adapter && salt.empty() && lookup.media.empty();
        lookup.plain_key =
            plain ? lookup.chain.front() : keys.Next(keys.Root(""), of_prompt.first(keys.block_tokens()), {});
      }
      if (lookup.chain.size() != before) lookup.ends.push_back(static_cast<uint32_t>(lookup.chain.size()));
      begin = end;
    }
  }

  // Of each prompt the longest run of each endpoint, of which the best of its engines counts.
  void Find(ExactLookup& lookup) const {
    if (lookup.found.empty()) lookup.found.resize(caches_->index.max_sources());
    uint32_t begin = 0;
    uint32_t hits = 0;
    for (const uint32_t end : lookup.ends) {
      caches_->index.Match(std::span(lookup.chain).subspan(begin, end - begin), lookup.scratch,
                           lookup.matches);
      begin = end;
      std::sort(lookup.matches.begin(), lookup.matches.end(),
                [](const auto& a, const auto& b) { return a.weight > b.weight; });
      uint32_t longest = 0;
      for (prefix::ExactMatch& match : lookup.matches) {
        longest = std::max(longest, match.blocks);
        match.source = caches_->FirstOf(match.source);
      }
      hits += longest;
      Add(lookup);
    }
    caches_->lookups.fetch_add(lookup.ends.size(), std::memory_order_relaxed);
    caches_->hits.fetch_add(hits, std::memory_order_relaxed);
  }
  // `matches`: the best first; of one endpoint the first one counts.
  static void Add(ExactLookup& lookup) {
    for (size_t i = 0; i < lookup.matches.size(); ++i) {
      const prefix::ExactMatch& match = lookup.matches[i];
      const auto same = [&match](const prefix::ExactMatch& m) { return m.source == match.source; };
      const auto here = lookup.matches.begin() + static_cast<std::ptrdiff_t>(i);
      if (std::any_of(lookup.matches.begin(), here, same)) continue;
      ExactLookup::Found& found = lookup.found[match.source];
      if (found.blocks == 0) lookup.found_list.push_back(match.source);
      found.blocks += match.blocks;
      found.weight += match.weight;
    }
  }

  // ---- Parameters.

  static void ReadTokenProcessor(Build& build, prefix::ExactOptions& options) {
    constexpr int64_t kOtherwise = 16;
    constexpr int64_t kMost = 1 << 16;
    const api::Node node =
        build.Object("tokenProcessorConfig", "How blocks get their keys: {blockSizeTokens, hashSeed, ...}");
    api::ObjectReader reader(node);
    const int64_t old = reader.Get("blockSize").Integer(0, kMost).value_or(0);
    int64_t tokens = reader.Get("blockSizeTokens").Integer(0, kMost).value_or(0);
    if (tokens == 0) tokens = old != 0 ? old : kOtherwise;
    const std::string seed = reader.Get("hashSeed").Text().value_or("");
    const auto algorithm = api::ReadChoice(reader.Get("hashAlgorithm"), {"cbor-fnv", "xxh64", ""});
    if (node.present()) reader.Finish();
    using enum prefix::BlockKeys::Algorithm;
    options.keys = prefix::BlockKeys(algorithm == 1 ? kXxh64 : kCborFnv, seed, static_cast<uint32_t>(tokens));
  }

  static void ReadIndexer(Build& build, prefix::ExactOptions& options) {
    const api::Node node =
        build.Object("indexerConfig", "The index: {kvBlockIndexConfig, kvCacheBackendConfigs}");
    api::ObjectReader reader(node);
    const api::Node index = reader.Get("kvBlockIndexConfig");
    ReadIndex(index, options);
    const api::Node tiers = reader.Get("kvCacheBackendConfigs");
    if (tiers.present()) ReadTiers(tiers, options);
    const api::Node pool = reader.Get("tokenizersPoolConfig");
    if (pool.present()) pool.Error("is not supported: configure a token-producer plugin instead");
    if (node.present()) reader.Finish();
  }

  static void ReadIndex(const api::Node& node, prefix::ExactOptions& options) {
    api::ObjectReader reader(node);
    const auto no_effect = [](const api::Node& given, std::string_view why) {
      if (given.present()) given.Warn("has no effect here: " + std::string(why));
    };
    no_effect(reader.Get("inMemoryConfig"),
              "the index is bounded in bytes, by `memory`, and by no number of "
              "Pods to a block");
    no_effect(reader.Get("redisConfig"), "each picker has an index of its own");
    const api::Node cost = reader.Get("costAwareMemoryConfig");
    api::ObjectReader of_cost(cost);
    const api::Node size = of_cost.Get("size");
    if (const auto text = size.Text()) {
      const auto bytes = base::ParseQuantity(*text);
      if (!bytes || *bytes < (1 << 20) || *bytes > (uint64_t{1} << 40)) {
        size.Error("must be a quantity of bytes from 1Mi to 1Ti, such as 2Gi");
      } else {
        options.bytes = static_cast<size_t>(*bytes);
      }
    }
    if (cost.present()) of_cost.Finish();
    reader.Ignore({"enableMetrics", "metricsLoggingInterval"});
    if (node.present()) reader.Finish();
  }

  static void ReadTiers(const api::Node& node, prefix::ExactOptions& options) {
    constexpr size_t kMostTiers = 32;
    options.tiers.clear();
    std::vector<double> different = {1};
    for (const api::Node& item : node.Items(0, kMostTiers)) {
      api::ObjectReader reader(item);
      const std::string name = reader.Require("name").Text().value_or("");
      const auto weight = api::ReadNumber(reader.Require("weight"), 0, 1000);
      reader.Finish();
      if (!weight || name.empty()) continue;
      options.tiers.emplace_back(base::ToLower(name), static_cast<float>(*weight));
      if (std::find(different.begin(), different.end(), *weight) == different.end())
        different.push_back(*weight);
    }
    if (different.size() > prefix::ExactIndex::kMaxWeights) {
      node.Error("can have at most " + std::to_string(prefix::ExactIndex::kMaxWeights) +
                 " different weights, 1 included");
      options.tiers.clear();
    }
  }

  void ReadEvents(Build& build) {
    const api::Node node = build.Object(
        "kvEventsConfig", "Where engines publish KV events: {zmqEndpoint, topicFilter, discoverPods, ...}");
    api::ObjectReader reader(node);
    ReadCentral(reader.Get("zmqEndpoint"));
    const api::Node engine = reader.Get("engineType");
    if (const auto type = engine.Text(); type && *type != "vllm" && *type != "sglang")
      engine.Error("must be vllm or sglang, not " + *type);
    reader.Ignore({"concurrency"});
    where_.topic = reader.Get("topicFilter").Text().value_or("kv@");
    const api::Node discover = reader.Get("discoverPods");
    where_.dials = api::ReadBoolean(discover).value_or(true);
    wanted_ = where_.dials || where_.central_port != 0;
    if (!wanted_)
      discover.Warn("no KV events are read: no Pod is asked, and without zmqEndpoint none can dial");
    ReadDiscovery(reader.Get("podDiscoveryConfig"));
    if (node.present()) reader.Finish();
  }

  static bool IsAddress(const std::string& host) {
    in6_addr address;
    return inet_pton(AF_INET, host.c_str(), &address) == 1 ||
           inet_pton(AF_INET6, host.c_str(), &address) == 1;
  }

  // As libzmq binds: tcp://*:5557, tcp://0.0.0.0:5557, tcp://[::]:5557.
  void ReadCentral(const api::Node& node) {
    const auto text = node.Text();
    if (!text || text->empty()) return;
    const auto bad = [&] {
      node.Error("must be an address of this machine that engines dial, as tcp://*:5557");
    };
    constexpr std::string_view kTcp = "tcp://";
    if (!text->starts_with(kTcp)) return bad();
    const std::string_view place = std::string_view(*text).substr(kTcp.size());
    const size_t colon = place.rfind(':');
    const auto port = base::ParseInteger<uint16_t>(place.substr(std::min(colon, place.size() - 1) + 1));
    std::string_view host = place.substr(0, std::min(colon, place.size()));
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (host == "*") host = "::";  // IPv4, too
    if (colon == std::string_view::npos || !port || *port == 0 || !IsAddress(std::string(host))) return bad();
    where_.central_host = host;
    where_.central_port = *port;
  }

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
  bool speculates_ = false;
  base::Nanos ttl_ = 0;
  Column cached_, likely_, source_, blocks_;
  Build::Worker<ExactLookup> lookup_;
  std::shared_ptr<EngineCaches> caches_;
};

class PrecisePrefixCacheProducer final : public PrecisePrefixCache {
 public:
  using PrecisePrefixCache::PrecisePrefixCache;
};

class PrecisePrefixCacheScorer final : public PrecisePrefixCache, public Scorer {
 public:
  using PrecisePrefixCache::PrecisePrefixCache;
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* match = context.columns[match_];
    for (size_t i = 0; i < in.size(); ++i) out[i] = match[in[i]];
  }
};

}  // namespace

std::unique_ptr<Plugin> MakePrecisePrefixCacheProducer(Build& build) {
  return std::make_unique<PrecisePrefixCacheProducer>(build);
}

std::unique_ptr<Plugin> MakePrecisePrefixCacheScorer(Build& build) {
  return std::make_unique<PrecisePrefixCacheScorer>(build);
}

}  // namespace fairway::scheduling
