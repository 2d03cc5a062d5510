#include "sources/scrape/metrics_page.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/strings.h"

namespace fairway::sources::scrape {
namespace {

constexpr double kMaxCount = 1e9;
// Engines compute the ratio in floating point, and some count a block twice for a moment: a little more than
// full is full.
constexpr double kMaxUsage = 1.5;
constexpr size_t kMaxAdapterName = 512;

bool IsBlank(char c) { return c == ' ' || c == '\t'; }
void SkipBlanks(std::string_view& text) {
  while (!text.empty() && IsBlank(text.front())) text.remove_prefix(1);
}

// Of an OpenMetrics page.
bool IsEnd(std::string_view line) {
  return line.starts_with("# EOF") && (line.size() == 5 || line.substr(5) == "\r");
}

// One label of `{a="x",b="y"}`; `raw` still has its escapes.
struct Label {
  std::string_view name;
  std::string_view raw;
};

enum class LabelStep { kLabel, kEnd, kBad };

// Takes the next label off `text`, which stands after '{' or after the label before. At kEnd `text` stands
// after '}'.
LabelStep NextLabel(std::string_view& text, Label& label) {
  SkipBlanks(text);
  if (!text.empty() && text.front() == ',') {
    text.remove_prefix(1);
    SkipBlanks(text);
  }
  if (text.empty()) return LabelStep::kBad;
  if (text.front() == '}') {
    text.remove_prefix(1);
    return LabelStep::kEnd;
  }
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) return LabelStep::kBad;
  label.name = base::Trim(text.substr(0, equals));
  text.remove_prefix(equals + 1);
  SkipBlanks(text);
  if (text.empty() || text.front() != '"') return LabelStep::kBad;
  text.remove_prefix(1);
  for (size_t from = 0;;) {
    const size_t stop = text.find_first_of("\"\\", from);
    if (stop == std::string_view::npos) return LabelStep::kBad;
    if (text[stop] == '"') {
      label.raw = text.substr(0, stop);
      text.remove_prefix(stop + 1);
      return LabelStep::kLabel;
    }
    from = stop + 2;
    if (from > text.size()) return LabelStep::kBad;
  }
}

// Takes one character off `raw`. Escapes of the exposition format: \\ \" \n; another escape stands for
// itself.
char Unescape(std::string_view& raw) {
  char c = raw.front();
  raw.remove_prefix(1);
  if (c != '\\' || raw.empty()) return c;
  if (raw.front() == 'n') {
    c = '\n';
  } else if (raw.front() == '"' || raw.front() == '\\') {
    c = raw.front();
  } else {
    return c;
  }
  raw.remove_prefix(1);
  return c;
}

bool ValueIs(std::string_view raw, std::string_view wanted) {
  if (raw.find('\\') == std::string_view::npos) return raw == wanted;
  for (char c : wanted) {
    if (raw.empty() || Unescape(raw) != c) return false;
  }
  return raw.empty();
}

bool HasLabels(std::string_view labels, const std::vector<std::pair<std::string, std::string>>& wanted) {
  for (const auto& [name, value] : wanted) {
    std::string_view rest = labels;
    Label label;
    bool found = false;
    while (!found && NextLabel(rest, label) == LabelStep::kLabel) {
      found = label.name == name && ValueIs(label.raw, value);
    }
    if (!found) return false;
  }
  return true;
}

// A number of the exposition format: Go's ParseFloat, so also +Inf, -Inf and NaN. Takes it off `text`.
bool TakeNumber(std::string_view& text, double& value) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (begin != end && *begin == '+') {
    ++begin;
    if (begin != end && *begin == '-') return false;
  }
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error == std::errc::result_out_of_range) {
    // Too large or too small for a double: both are no signal, and infinity says so to the range check.
    value = std::numeric_limits<double>::infinity();
  } else if (error != std::errc()) {
    return false;
  }
  if (stop != end && !IsBlank(*stop)) return false;
  text.remove_prefix(static_cast<size_t>(stop - text.data()));
  return true;
}

// The whole of a label's value as a small number. "None", "" and what is no number: nothing.
std::optional<uint32_t> SmallNumber(std::string_view raw) {
  return base::ParseInteger<uint32_t>(base::Trim(raw));
}

// vLLM writes "None" until it knows.
bool IsUnknown(std::string_view raw) {
  const std::string_view text = base::Trim(raw);
  return text.empty() || text == "None";
}

void SplitAdapters(std::string_view list, std::vector<std::string_view>& names, EngineSample& sample) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    const std::string_view name = base::Trim(list.substr(0, comma));
    list.remove_prefix(comma == std::string_view::npos ? list.size() : comma + 1);
    if (name.empty()) continue;
    if (name.size() > kMaxAdapterName || names.size() == kMaxAdaptersPerList) {
      ++sample.garbage;
      if (names.size() == kMaxAdaptersPerList) return;
      continue;
    }
    names.push_back(name);
  }
}

// The label's text: the page's own bytes where they need no unescaping. `storage` was reserved, so that views
// into it hold.
std::string_view Plain(std::string_view raw, std::string& storage) {
  if (raw.find('\\') == std::string_view::npos) return raw;
  const size_t begin = storage.size();
  while (!raw.empty()) storage += Unescape(raw);
  return std::string_view(storage).substr(begin);
}

void ReadLora(std::string_view labels, EngineSample& sample) {
  sample.has_lora = true;
  sample.unescaped.clear();
  sample.unescaped.reserve(labels.size());
  Label label;
  while (NextLabel(labels, label) == LabelStep::kLabel) {
    if (label.name == "running_lora_adapters") {
      sample.running_adapters.clear();
      SplitAdapters(Plain(label.raw, sample.unescaped), sample.running_adapters, sample);
    } else if (label.name == "waiting_lora_adapters") {
      sample.waiting_adapters.clear();
      SplitAdapters(Plain(label.raw, sample.unescaped), sample.waiting_adapters, sample);
    } else if (label.name == "max_lora") {
      sample.max_lora = SmallNumber(label.raw);
      if (!sample.max_lora && !IsUnknown(label.raw)) ++sample.garbage;
    }
  }
}

void ReadCacheInfo(std::string_view labels, const EngineSpec& spec, EngineSample& sample) {
  Label label;
  while (NextLabel(labels, label) == LabelStep::kLabel) {
    std::optional<uint32_t>* out = label.name == spec.block_size_label   ? &sample.block_size
                                   : label.name == spec.num_blocks_label ? &sample.num_blocks
                                                                         : nullptr;
    if (out == nullptr) continue;
    *out = SmallNumber(label.raw);
    if (!*out && !IsUnknown(label.raw)) ++sample.garbage;
  }
}

}  // namespace

base::Result<MetricSpec> ParseMetricSpec(std::string_view text) {
  const auto fail = [&](std::string_view why) {
    return base::Fail(base::ErrorCode::kInvalidArgument, "metric \"" + std::string(text) +
                                                             "\": " + std::string(why) +
                                                             "; expected name or name{label=value,...}");
  };
  MetricSpec spec;
  std::string_view rest = base::Trim(text);
  const size_t brace = rest.find('{');
  spec.name = base::Trim(rest.substr(0, brace));
  if (spec.name.empty()) return fail("no name");
  if (spec.name.find_first_of(" \t\r\n\"=,}#") != std::string::npos) return fail("not a metric name");
  if (brace == std::string_view::npos) return spec;
  rest.remove_prefix(brace + 1);
  if (rest.empty() || rest.back() != '}') return fail("the closing } is missing");
  rest.remove_suffix(1);
  if (base::Trim(rest).empty()) return spec;
  for (std::string_view piece : base::Split(rest, ',')) {
    const size_t equals = piece.find('=');
    if (equals == std::string_view::npos) return fail("a label without =");
    const std::string_view name = base::Trim(piece.substr(0, equals));
    std::string_view value = base::Trim(piece.substr(equals + 1));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    if (name.empty()) return fail("a label without a name");
    if (value.find('"') != std::string_view::npos) return fail("a quote inside a value");
    spec.labels.emplace_back(name, value);
  }
  return spec;
}

PageReader::PageReader(EngineSpec spec) : spec_(std::move(spec)) {
  AddUses(kQueued, spec_.queued);
  AddUses(kRunning, spec_.running);
  AddUses(kKvUsage, spec_.kv_usage);
  AddUses(kLora, spec_.lora);
  AddUses(kCacheInfo, spec_.cache_info);
  AddUses(kBlockSize, spec_.block_size);
  AddUses(kNumBlocks, spec_.num_blocks);
  FAIRWAY_CHECK(!families_.empty() && families_.size() <= 64);
  common_ = families_.front().name.size();
  for (const Family& family : families_) {
    const auto [mine, theirs] = std::mismatch(family.name.begin(), family.name.end(),
                                              families_.front().name.begin(), families_.front().name.end());
    common_ = std::min(common_, static_cast<size_t>(mine - family.name.begin()));
  }
  // Each name needs a byte of its own after the prefix.
  for (const Family& family : families_) common_ = std::min(common_, family.name.size() - 1);
  for (size_t i = 0; i < families_.size(); ++i) {
    by_byte_[static_cast<unsigned char>(families_[i].name[common_])] |= uint64_t{1} << i;
  }
}

void PageReader::AddUses(Field field, const std::vector<MetricSpec>& alternatives) {
  for (size_t i = 0; i < alternatives.size(); ++i) {
    const MetricSpec& spec = alternatives[i];
    FAIRWAY_CHECK(!spec.name.empty());
    auto family = std::find_if(families_.begin(), families_.end(),
                               [&](const Family& f) { return f.name == spec.name; });
    if (family == families_.end()) family = families_.insert(family, Family{spec.name, {}});
    family->uses.push_back({field, static_cast<uint8_t>(std::min<size_t>(i, 255)), &spec});
  }
}

void PageReader::Read(std::string_view page, EngineSample& sample) const {
  sample.queued = sample.running = sample.kv_usage = std::nullopt;
  sample.has_lora = false;
  sample.running_adapters.clear();
  sample.waiting_adapters.clear();
  sample.max_lora = sample.block_size = sample.num_blocks = std::nullopt;
  sample.families = sample.garbage = sample.malformed = sample.missing = 0;

  BestLines best;
  const char* const end = page.data() + page.size();
  const char* line = page.data();
  while (line < end) {
    const void* newline = std::memchr(line, '\n', static_cast<size_t>(end - line));
    const char* next = newline == nullptr ? end : static_cast<const char*>(newline) + 1;
    std::string_view text(line, static_cast<size_t>((newline == nullptr ? end : next - 1) - line));
    line = next;
    if (!text.empty() && IsBlank(text.front())) [[unlikely]]
      SkipBlanks(text);
    // The byte after the common prefix decides for nearly all lines; comments and foreign families go here.
    if (text.size() <= common_) {
      if (IsEnd(text)) break;
      continue;
    }
    uint64_t candidates = by_byte_[static_cast<unsigned char>(text[common_])];
    if (candidates == 0) {
      if (IsEnd(text)) break;
      continue;
    }
    for (; candidates != 0; candidates &= candidates - 1) {
      const Family& family = families_[static_cast<size_t>(__builtin_ctzll(candidates))];
      if (text.size() <= family.name.size() || !text.starts_with(family.name)) continue;
      const char after = text[family.name.size()];
      if (after != '{' && !IsBlank(after)) continue;  // a longer name
      if (text.back() == '\r') text.remove_suffix(1);
      ReadLine(family, text.substr(family.name.size()), best, sample);
      break;
    }
  }

  if (best[kQueued].set) sample.queued = best[kQueued].value;
  if (best[kRunning].set) sample.running = best[kRunning].value;
  if (best[kKvUsage].set) sample.kv_usage = std::min(best[kKvUsage].value, 1.0);
  if (best[kLora].set) ReadLora(best[kLora].labels, sample);
  if (best[kCacheInfo].set) ReadCacheInfo(best[kCacheInfo].labels, spec_, sample);
  if (best[kBlockSize].set) sample.block_size = static_cast<uint32_t>(best[kBlockSize].value);
  if (best[kNumBlocks].set) sample.num_blocks = static_cast<uint32_t>(best[kNumBlocks].value);
  sample.missing = static_cast<uint32_t>(!spec_.queued.empty() && !sample.queued) +
                   static_cast<uint32_t>(!spec_.running.empty() && !sample.running) +
                   static_cast<uint32_t>(!spec_.kv_usage.empty() && !sample.kv_usage);
}

void PageReader::ReadLine(const Family& family, std::string_view rest, BestLines& best,
                          EngineSample& sample) const {
  SkipBlanks(rest);
  std::string_view labels;  // after '{' up to and with '}'
  if (!rest.empty() && rest.front() == '{') {
    rest.remove_prefix(1);
    const char* const begin = rest.data();
    Label label;
    LabelStep step = LabelStep::kLabel;
    while (step == LabelStep::kLabel) step = NextLabel(rest, label);
    if (step == LabelStep::kBad) {
      ++sample.malformed;
      return;
    }
    labels = std::string_view(begin, static_cast<size_t>(rest.data() - begin));
    SkipBlanks(rest);
  }
  double value = 0;
  double timestamp = -std::numeric_limits<double>::infinity();  // without one: below all that have one
  if (!TakeNumber(rest, value)) {
    ++sample.malformed;
    return;
  }
  SkipBlanks(rest);
  if (!rest.empty() && rest.front() != '#') {  // '#': an OpenMetrics exemplar
    if (!TakeNumber(rest, timestamp) || !std::isfinite(timestamp)) {
      ++sample.malformed;
      return;
    }
    SkipBlanks(rest);
    if (!rest.empty() && rest.front() != '#') {
      ++sample.malformed;
      return;
    }
  }
  for (const Use& use : family.uses) {
    if (!use.spec->labels.empty() && !HasLabels(labels, use.spec->labels)) continue;
    const bool is_count = use.field != kKvUsage;
    const bool is_info = use.field == kLora || use.field == kCacheInfo;
    const double limit = is_info ? std::numeric_limits<double>::max() : is_count ? kMaxCount : kMaxUsage;
    if (!(value >= 0 && value <= limit)) {  // also NaN
      ++sample.garbage;
      continue;
    }
    ++sample.families;
    Best& old = best[use.field];
    const double order = use.field == kLora ? value : timestamp;
    if (old.set && (use.rank > old.rank || (use.rank == old.rank && order <= old.timestamp))) continue;
    old = {true, use.rank, order, value, labels};
  }
}

EngineReaders::EngineReaders() : EngineReaders(BuiltinEngines()) {}

EngineReaders::EngineReaders(std::vector<EngineSpec> specs) {
  FAIRWAY_CHECK(!specs.empty());
  readers_.reserve(specs.size());
  for (EngineSpec& spec : specs) readers_.push_back(std::make_unique<PageReader>(std::move(spec)));
}

const PageReader* EngineReaders::Find(std::string_view engine) const {
  for (const auto& reader : readers_) {
    if (reader->engine() == engine) return reader.get();
  }
  return nullptr;
}

const PageReader* EngineReaders::Detect(std::string_view page, EngineSample& scratch) const {
  const PageReader* found = nullptr;
  uint32_t fewest_missing = 0;
  for (const auto& reader : readers_) {
    reader->Read(page, scratch);
    if (scratch.families == 0) continue;
    if (found == nullptr || scratch.missing < fewest_missing) {
      found = reader.get();
      fewest_missing = scratch.missing;
    }
  }
  return found;
}

// Names: each engine's own documentation; choice of names: the reference's defaults (llm-d router,
// core-metrics-extractor).
std::vector<EngineSpec> BuiltinEngines() {
  std::vector<EngineSpec> engines;
  engines.push_back({
      .name = "vllm",
      .queued = {{"vllm:num_requests_waiting", {}}},
      .running = {{"vllm:num_requests_running", {}}},
      // The second name is of vLLM before 0.9 (V0 engine).
      .kv_usage = {{"vllm:kv_cache_usage_perc", {}}, {"vllm:gpu_cache_usage_perc", {}}},
      .lora = {{"vllm:lora_requests_info", {}}},
      .cache_info = {{"vllm:cache_config_info", {}}},
      .block_size_label = "block_size",
      .num_blocks_label = "num_gpu_blocks",
  });
  engines.push_back({
      .name = "sglang",
      .queued = {{"sglang:num_queue_reqs", {}}},
      .running = {{"sglang:num_running_reqs", {}}},
      .kv_usage = {{"sglang:token_usage", {}}},
      .cache_info = {{"sglang:cache_config_info", {}}},
      .block_size_label = "page_size",
      .num_blocks_label = "num_pages",
  });
  engines.push_back({
      .name = "trtllm-serve",
      .queued = {{"trtllm_num_requests_waiting", {}}},
      .running = {{"trtllm_num_requests_running", {}}},
      .kv_usage = {{"trtllm_kv_cache_utilization", {}}},
      .block_size = {{"trtllm_kv_cache_tokens_per_block", {}}},
      .num_blocks = {{"trtllm_kv_cache_max_blocks", {}}},
  });
  engines.push_back({
      .name = "triton-tensorrt-llm",
      .queued = {{"nv_trt_llm_request_metrics", {{"request_type", "waiting"}}}},
      .running = {{"nv_trt_llm_request_metrics", {{"request_type", "scheduled"}}}},
      .kv_usage = {{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", "fraction"}}}},
      .block_size = {{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", "tokens_per"}}}},
      .num_blocks = {{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", "max"}}}},
  });
  engines.push_back({
      .name = "triton",
      .queued = {{"nv_inference_pending_request_count", {}}},
      .running = {{"nv_inference_exec_count", {}}},
  });
  return engines;
}

}  // namespace fairway::sources::scrape
