#include "sources/scrape/metrics_page.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/strings.h"
#include "sources/scrape/labels.h"

namespace fairway::sources::scrape {
namespace {

constexpr double kMaxCount = 1e9;
// Engines compute the ratio in floating point, and some count a block twice for a moment: a little more than
// full is full.
constexpr double kMaxUsage = 1.5;
constexpr size_t kMaxName = 512;  // of a model or an adapter
constexpr size_t kMaxRank = 63;

// Of an OpenMetrics page.
bool IsEnd(std::string_view line) {
  return line.starts_with("# EOF") && (line.size() == 5 || line.substr(5) == "\r");
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

uint32_t SaturatedSum(uint32_t a, uint32_t b) {
  return a > std::numeric_limits<uint32_t>::max() - b ? std::numeric_limits<uint32_t>::max() : a + b;
}

// `room`: how many more names are taken from this page.
void SplitAdapters(std::string_view list, size_t& room, std::vector<std::string_view>& names,
                   EngineSample& sample) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    const std::string_view name = base::Trim(list.substr(0, comma));
    list.remove_prefix(comma == std::string_view::npos ? list.size() : comma + 1);
    if (name.empty()) continue;
    if (name.size() > kMaxName || room == 0) {
      ++sample.garbage;
      if (room == 0) return;
      continue;
    }
    --room;
    names.push_back(name);
  }
}

// One engine's lists, behind those of the engines before. `rooms`: of running and of waiting names.
void ReadLoraLine(std::string_view labels, std::array<size_t, 2>& rooms, EngineSample& sample) {
  LoraEngine& engine = sample.lora_engines.emplace_back();
  const size_t running = sample.running_adapters.size();
  const size_t waiting = sample.waiting_adapters.size();
  Label label;
  while (NextLabel(labels, label) == LabelStep::kLabel) {
    if (label.name == "running_lora_adapters") {
      sample.running_adapters.resize(running);
      SplitAdapters(Plain(label.raw, sample.unescaped), rooms[0], sample.running_adapters, sample);
    } else if (label.name == "waiting_lora_adapters") {
      sample.waiting_adapters.resize(waiting);
      SplitAdapters(Plain(label.raw, sample.unescaped), rooms[1], sample.waiting_adapters, sample);
    } else if (label.name == "max_lora") {
      engine.max = SmallNumber(label.raw);
      if (!engine.max && !IsUnknown(label.raw)) ++sample.garbage;
    }
  }
  engine.running = sample.running_adapters.size() - running;
  engine.waiting = sample.waiting_adapters.size() - waiting;
}

// Of each engine the line with the largest value, which is when it was written, else the first.
void ReadLora(const SeriesLines& lines, SeriesScratch& scratch, EngineSample& sample) {
  auto& keyed = scratch.keyed;
  keyed.clear();
  size_t bytes = 0;
  for (const SeriesLine& line : lines.lines()) {
    if (!line.usable) continue;
    keyed.push_back({.engine = LoraEngineOf(line.labels), .line = &line});
    bytes += line.labels.size();
  }
  sample.has_lora = !keyed.empty();
  sample.lora_unknown = !sample.has_lora && (!lines.lines().empty() || lines.broken(0));
  std::stable_sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) {
    return std::make_pair(a.engine, -a.line->value) < std::make_pair(b.engine, -b.line->value);
  });
  sample.unescaped.clear();
  sample.unescaped.reserve(bytes);
  std::array<size_t, 2> rooms{kMaxAdaptersPerList, kMaxAdaptersPerList};
  for (size_t i = 0; i < keyed.size(); ++i) {
    if (i == 0 || keyed[i].engine != keyed[i - 1].engine) ReadLoraLine(keyed[i].line->labels, rooms, sample);
  }
  for (const LoraEngine& engine : sample.lora_engines) {
    if (engine.max) sample.max_lora = SaturatedSum(sample.max_lora.value_or(0), *engine.max);
  }
}

// The value of the newest timestamp, else the first: of a series that nothing is known of. Not a number where
// there is none.
double NewestOf(const SeriesLines& lines) {
  const SeriesLine* newest = nullptr;
  for (const SeriesLine& line : lines.lines()) {
    if (line.usable && (newest == nullptr || line.timestamp > newest->timestamp)) newest = &line;
  }
  return newest != nullptr ? newest->value : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

PageReader::PageReader(EngineSpec spec) : spec_(std::move(spec)) {
  only_custom_ = spec_.queued.empty() && spec_.running.empty() && spec_.kv_usage.empty();
  AddUses(kQueued, spec_.queued);
  AddUses(kRunning, spec_.running);
  AddUses(kKvUsage, spec_.kv_usage);
  AddUses(kLora, spec_.lora);
  AddUses(kCacheInfo, spec_.cache_info);
  AddUses(kBlockSize, spec_.block_size);
  AddUses(kNumBlocks, spec_.num_blocks);
  FAIRWAY_CHECK(spec_.custom.size() <= api::EnginePage::kMaxCustom);
  for (size_t i = 0; i < spec_.custom.size(); ++i) {
    AddUses(static_cast<uint8_t>(kCustom + i), spec_.custom[i].metric);
    custom_keys_.push_back(fleet::PageAttributes::KeyOf(spec_.custom[i].key));
  }
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

void PageReader::AddUses(uint8_t field, const std::vector<MetricSpec>& alternatives) {
  for (size_t i = 0; i < alternatives.size(); ++i) {
    const MetricSpec& spec = alternatives[i];
    FAIRWAY_CHECK(!spec.name.empty());
    auto family = std::find_if(families_.begin(), families_.end(),
                               [&](const Family& f) { return f.name == spec.name; });
    if (family == families_.end()) family = families_.insert(family, Family{spec.name, {}});
    if (field < kCustom) {
      for (const auto& [name, value] : spec.labels) selecting_.push_back(name);
    }
    family->uses.push_back({field, static_cast<uint8_t>(std::min<size_t>(i, kMaxRank)), &spec});
  }
}

void PageReader::Read(std::string_view page, EngineSample& sample) const {
  sample.queued = sample.running = sample.kv_usage = std::nullopt;
  sample.has_lora = sample.lora_unknown = false;
  sample.running_adapters.clear();
  sample.waiting_adapters.clear();
  sample.lora_engines.clear();
  sample.models.clear();
  for (SeriesLines& lines : sample.lines) lines.Clear();
  sample.max_lora = sample.block_size = sample.num_blocks = std::nullopt;
  sample.families = sample.garbage = sample.malformed = sample.missing = 0;

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
      ReadLine(family, text.substr(family.name.size()), sample);
      break;
    }
  }

  AddUp(sample);
  sample.load_unknown =
      (!spec_.queued.empty() && !sample.queued) || (!spec_.running.empty() && !sample.running);
  sample.kv_unknown = !spec_.kv_usage.empty() && !sample.kv_usage;
  sample.missing = static_cast<uint32_t>(!spec_.queued.empty() && !sample.queued) +
                   static_cast<uint32_t>(!spec_.running.empty() && !sample.running) +
                   static_cast<uint32_t>(!spec_.kv_usage.empty() && !sample.kv_usage);
}

void PageReader::AddUp(EngineSample& sample) const {
  const auto& lines = sample.lines;
  SeriesScratch& scratch = sample.scratch;
  sample.queued = SumOf(lines[kQueued], scratch);
  sample.running = SumOf(lines[kRunning], scratch);
  const Capacities capacities(lines[kKvUsage], lines[kCacheInfo], lines[kNumBlocks], lines[kBlockSize],
                              {spec_.block_size_label, spec_.num_blocks_label, selecting_}, scratch);
  sample.block_size = capacities.block_size();
  sample.num_blocks = capacities.num_blocks();
  sample.garbage += capacities.garbage();
  if (ReadEngines(lines[kKvUsage], scratch)) {
    sample.kv_usage = std::min(capacities.WeightedMean(scratch.engines), 1.0);
  }
  ReadLora(lines[kLora], scratch, sample);
  sample.custom.clear();
  for (size_t i = 0; i < spec_.custom.size(); ++i)
    sample.custom.push_back(static_cast<float>(NewestOf(lines[kCustom + i])));
  size_t bytes = 0;
  for (const std::string_view raw : sample.models) bytes += raw.size();
  sample.unescaped_models.clear();
  sample.unescaped_models.reserve(bytes);
  for (std::string_view& model : sample.models) model = Plain(model, sample.unescaped_models);
}

// `raw`: with its escapes, as AddUp expects it.
void PageReader::AddModel(std::string_view raw, EngineSample& sample) {
  if (raw.empty() || raw.size() > kMaxName || sample.models.size() == kMaxModels) return;
  if (std::find(sample.models.begin(), sample.models.end(), raw) == sample.models.end())
    sample.models.push_back(raw);
}

// Whether `rest`, from behind the labels on, is a value with or without a timestamp.
bool PageReader::ReadNumbers(std::string_view rest, SeriesLine& line) {
  SkipBlanks(rest);
  if (!TakeNumber(rest, line.value)) return false;
  SkipBlanks(rest);
  if (!rest.empty() && rest.front() != '#') {  // '#': an OpenMetrics exemplar
    if (!TakeNumber(rest, line.timestamp) || !std::isfinite(line.timestamp)) return false;
    SkipBlanks(rest);
  }
  return rest.empty() || rest.front() == '#';
}

void PageReader::ReadLine(const Family& family, std::string_view rest, EngineSample& sample) const {
  SkipBlanks(rest);
  std::string_view model;
  // Without a timestamp: below all that have one.
  SeriesLine line{.timestamp = -std::numeric_limits<double>::infinity()};
  if (!rest.empty() && rest.front() == '{') {
    rest.remove_prefix(1);
    const char* const begin = rest.data();
    Label label;
    LabelStep step = LabelStep::kLabel;
    while ((step = NextLabel(rest, label)) == LabelStep::kLabel) {
      if (label.name == spec_.model_label) model = label.raw;
    }
    if (step == LabelStep::kBad) {
      ++sample.malformed;
      for (const Use& use : family.uses) sample.lines[use.field].AddBroken(use.rank);
      return;
    }
    line.labels = std::string_view(begin, static_cast<size_t>(rest.data() - begin));
  }
  const bool whole = ReadNumbers(rest, line);
  if (!whole) ++sample.malformed;
  for (const Use& use : family.uses) {
    if (!use.spec->labels.empty() && !HasLabels(line.labels, use.spec->labels)) continue;
    line.rank = use.rank;
    if (use.field >= kCustom) {
      line.usable = whole && std::isfinite(line.value);
      if (only_custom_) sample.families += line.usable ? 1 : 0;
      if (!sample.lines[use.field].Add(line)) ++sample.garbage;
      continue;
    }
    const bool is_count = use.field != kKvUsage;
    const bool is_info = use.field == kLora || use.field == kCacheInfo;
    const double limit = is_info ? std::numeric_limits<double>::max() : is_count ? kMaxCount : kMaxUsage;
    line.usable = whole && line.value >= 0 && line.value <= limit;  // not NaN
    sample.families += line.usable ? 1 : 0;
    sample.garbage += whole && !line.usable ? 1 : 0;
    if (line.usable && (use.field == kQueued || use.field == kRunning)) AddModel(model, sample);
    if (!sample.lines[use.field].Add(line)) ++sample.garbage;
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
  int most_said = 0;
  for (const auto& reader : readers_) {
    reader->Read(page, scratch);
    if (scratch.families == 0) continue;
    const int said = (scratch.queued ? 1 : 0) + (scratch.running ? 1 : 0) + (scratch.kv_usage ? 1 : 0);
    if (found == nullptr || said > most_said) {
      found = reader.get();
      most_said = said;
    }
  }
  return found;
}

const PageReader* EngineReaders::Elsewhere(std::string_view path) const {
  for (const auto& reader : readers_) {
    if (!reader->page().path.empty() && reader->page().path != path) return reader.get();
  }
  return nullptr;
}

}  // namespace fairway::sources::scrape
