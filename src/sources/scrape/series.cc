#include "sources/scrape/series.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <tuple>

#include "sources/scrape/labels.h"

namespace fairway::sources::scrape {
namespace {

// Ranks within one engine. SGLang shows one series a rank with --enable-metrics-for-all-schedulers; ranks
// that are engines of their own have a dp_rank beside.
bool IsMirror(std::string_view name) {
  return name == "tp_rank" || name == "pp_rank" || name == "moe_ep_rank";
}

// SGLang with priorities: `priority=""` is the sum of those that name one.
bool IsPart(std::string_view name) { return name == "priority"; }

uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Sums of these do not depend on the order that labels are written in.
uint64_t HashOf(const Label& label) {
  constexpr std::hash<std::string_view> hash;
  return Mix(Mix(hash(label.name)) + hash(label.raw));
}

SeriesScratch::Keyed KeyOf(const SeriesLine& line) {
  SeriesScratch::Keyed key{.line = &line};
  std::string_view rest = line.labels;
  Label label;
  while (!rest.empty() && NextLabel(rest, label) == LabelStep::kLabel) {
    const uint64_t hash = HashOf(label);
    key.exact += hash;
    if (IsPart(label.name)) {
      if (!label.raw.empty()) key.part += hash;
    } else if (!IsMirror(label.name)) {
      key.engine += hash;
    }
  }
  return key;
}

using Keyed = SeriesScratch::Keyed;

// Takes the lines off the front of `rest` that agree with its first one in `same`.
template <typename Same>
std::span<const Keyed> TakeGroup(std::span<const Keyed>& rest, Same same) {
  size_t n = 1;
  while (n < rest.size() && same(rest[0], rest[n])) ++n;
  const auto group = rest.first(n);
  rest = rest.subspan(n);
  return group;
}

std::optional<double> OfCopies(std::span<const Keyed> copies) {
  const SeriesLine* best = nullptr;
  for (const Keyed& copy : copies) {
    if (copy.line->usable && (best == nullptr || copy.line->timestamp > best->timestamp)) best = copy.line;
  }
  return best == nullptr ? std::nullopt : std::optional(best->value);
}

std::optional<double> OfMirrors(std::span<const Keyed> mirrors) {
  std::optional<double> largest;
  while (!mirrors.empty()) {
    const auto copies = TakeGroup(mirrors, [](const Keyed& a, const Keyed& b) { return a.exact == b.exact; });
    const auto value = OfCopies(copies);
    if (value && (!largest || *value > *largest)) largest = value;
  }
  return largest;
}

std::optional<double> OfParts(std::span<const Keyed> parts) {
  const bool has_sum = parts.front().part == 0;  // they are sorted
  double sum = 0;
  while (!parts.empty()) {
    const auto mirrors = TakeGroup(parts, [](const Keyed& a, const Keyed& b) { return a.part == b.part; });
    const auto value = OfMirrors(mirrors);
    if (has_sum || !value) return value;
    sum += *value;
  }
  return sum;
}

// The engines by the name at `rank` alone.
bool ReadRank(std::span<const SeriesLine> lines, uint8_t rank, SeriesScratch& scratch) {
  scratch.engines.clear();
  scratch.keyed.clear();
  for (const SeriesLine& line : lines) {
    if (line.rank == rank) scratch.keyed.push_back(KeyOf(line));
  }
  std::stable_sort(scratch.keyed.begin(), scratch.keyed.end(), [](const Keyed& a, const Keyed& b) {
    return std::tie(a.engine, a.part, a.exact) < std::tie(b.engine, b.part, b.exact);
  });
  std::span<const Keyed> rest(scratch.keyed);
  while (!rest.empty()) {
    const auto engine = TakeGroup(rest, [](const Keyed& a, const Keyed& b) { return a.engine == b.engine; });
    const auto value = OfParts(engine);
    if (!value) return false;
    scratch.engines.push_back({*value, engine.front().line->labels});
  }
  return !scratch.engines.empty();
}

}  // namespace

bool SeriesLines::Add(const SeriesLine& line) {
  if (lines_.size() == kMax) {
    AddBroken(line.rank);
    return false;
  }
  lines_.push_back(line);
  return true;
}

bool ReadEngines(const SeriesLines& lines, SeriesScratch& scratch) {
  const auto all = lines.lines();
  if (all.size() == 1) {  // nearly always
    scratch.engines.clear();
    if (!all[0].usable || lines.broken(all[0].rank)) return false;
    scratch.engines.push_back({all[0].value, all[0].labels});
    return true;
  }
  uint8_t most = 0;
  for (const SeriesLine& line : all) most = std::max(most, line.rank);
  for (uint8_t rank = 0; !all.empty() && rank <= most; ++rank) {
    if (!lines.broken(rank) && ReadRank(all, rank, scratch)) return true;
  }
  scratch.engines.clear();
  return false;
}

std::optional<double> SumOf(const SeriesLines& lines, SeriesScratch& scratch) {
  if (!ReadEngines(lines, scratch)) return std::nullopt;
  double sum = 0;
  for (const EngineValue& engine : scratch.engines) sum += engine.value;
  return sum;
}

// ---- Capacity.

using Capacity = SeriesScratch::Capacity;

Capacities::Capacities(const SeriesLines& beside, const SeriesLines& info, const SeriesLines& num_blocks,
                       const SeriesLines& block_size, const CapacityLabels& labels, SeriesScratch& scratch)
    : scratch_(scratch) {
  scratch.capacities.clear();
  FindNames(info.lines().empty() ? num_blocks.lines() : info.lines(), beside.lines(), labels.selecting);
  for (const SeriesLine& line : info.lines()) AddInfo(line, labels);
  const auto add = [this](const SeriesLine& line, std::optional<uint32_t> Capacity::* field) {
    Capacity capacity{.engine = EngineOf(line.labels), .timestamp = line.timestamp};
    if (line.usable) capacity.*field = static_cast<uint32_t>(line.value);
    scratch_.capacities.push_back(capacity);
  };
  for (const SeriesLine& line : num_blocks.lines()) add(line, &Capacity::blocks);
  for (const SeriesLine& line : block_size.lines()) add(line, &Capacity::block_size);
  KeepOneOfEach();
}

void Capacities::AddInfo(const SeriesLine& line, const CapacityLabels& labels) {
  Capacity capacity{.engine = EngineOf(line.labels), .timestamp = line.timestamp};
  std::string_view rest = line.labels;
  Label label;
  while (line.usable && !rest.empty() && NextLabel(rest, label) == LabelStep::kLabel) {
    std::optional<uint32_t>* out = label.name == labels.block_size   ? &capacity.block_size
                                   : label.name == labels.num_blocks ? &capacity.blocks
                                                                     : nullptr;
    if (out == nullptr) continue;
    *out = SmallNumber(label.raw);
    if (!*out && !IsUnknown(label.raw)) ++garbage_;
  }
  scratch_.capacities.push_back(capacity);
}

// Of an engine's lines the newest that knows, else the first.
void Capacities::KeepOneOfEach() {
  auto& all = scratch_.capacities;
  std::stable_sort(all.begin(), all.end(), [](const Capacity& a, const Capacity& b) {
    return std::tie(a.engine, b.timestamp) < std::tie(b.engine, a.timestamp);
  });
  size_t kept = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (kept == 0 || all[kept - 1].engine != all[i].engine) {
      all[kept++] = all[i];
      continue;
    }
    Capacity& engine = all[kept - 1];
    if (!engine.blocks) engine.blocks = all[i].blocks;
    if (!engine.block_size) engine.block_size = all[i].block_size;
  }
  all.resize(kept);
}

void Capacities::FindNames(std::span<const SeriesLine> mine, std::span<const SeriesLine> theirs,
                           std::span<const std::string> selecting) {
  if (mine.empty() || theirs.empty()) return;
  std::string_view rest = theirs.front().labels;
  Label label;
  while (!rest.empty() && name_count_ < kMaxNames && NextLabel(rest, label) == LabelStep::kLabel) {
    const bool selects = std::find(selecting.begin(), selecting.end(), label.name) != selecting.end();
    if (!selects && !IsMirror(label.name) && !IsPart(label.name)) names_[name_count_++] = label.name;
  }
  for (const SeriesLine& line : theirs.subspan(1)) KeepNamesOf(line.labels);
  for (const SeriesLine& line : mine) KeepNamesOf(line.labels);
}

void Capacities::KeepNamesOf(std::string_view labels) {
  size_t kept = 0;
  for (size_t i = 0; i < name_count_; ++i) {
    std::string_view rest = labels;
    Label label;
    bool found = false;
    while (!found && !rest.empty() && NextLabel(rest, label) == LabelStep::kLabel)
      found = label.name == names_[i];
    if (found) names_[kept++] = names_[i];
  }
  name_count_ = kept;
}

uint64_t Capacities::EngineOf(std::string_view labels) const {
  uint64_t hash = 0;
  Label label;
  while (!labels.empty() && NextLabel(labels, label) == LabelStep::kLabel) {
    if (std::find(names_, names_ + name_count_, label.name) != names_ + name_count_) hash += HashOf(label);
  }
  return hash;
}

std::optional<uint32_t> Capacities::num_blocks() const {
  uint64_t sum = 0;
  for (const auto& engine : scratch_.capacities) {
    if (!engine.blocks) return std::nullopt;
    sum += *engine.blocks;
  }
  if (scratch_.capacities.empty()) return std::nullopt;
  return static_cast<uint32_t>(std::min<uint64_t>(sum, std::numeric_limits<uint32_t>::max()));
}

std::optional<uint32_t> Capacities::block_size() const {
  if (scratch_.capacities.empty()) return std::nullopt;
  const auto first = scratch_.capacities.front().block_size;
  for (const auto& engine : scratch_.capacities) {
    if (engine.block_size != first) return std::nullopt;
  }
  return first;
}

double Capacities::WeightedMean(std::span<const EngineValue> usage) const {
  double largest = 0;
  for (const EngineValue& engine : usage) largest = std::max(largest, engine.value);
  if (usage.size() == 1 || usage.size() != scratch_.capacities.size()) return largest;
  const bool in_tokens = std::all_of(scratch_.capacities.begin(), scratch_.capacities.end(),
                                     [](const auto& engine) { return engine.block_size.value_or(0) != 0; });
  double sum = 0, total = 0;
  std::vector<uint64_t> seen;
  seen.reserve(usage.size());
  for (const EngineValue& engine : usage) {
    const uint64_t key = EngineOf(engine.labels);
    const auto found = std::lower_bound(scratch_.capacities.begin(), scratch_.capacities.end(), key,
                                        [](const auto& capacity, uint64_t k) { return capacity.engine < k; });
    if (found == scratch_.capacities.end() || found->engine != key || found->blocks.value_or(0) == 0)
      return largest;
    seen.push_back(key);
    const double weight = *found->blocks * (in_tokens ? static_cast<double>(*found->block_size) : 1.0);
    sum += engine.value * weight;
    total += weight;
  }
  // Two engines with one key: it is not known which capacity is whose.
  std::sort(seen.begin(), seen.end());
  if (std::adjacent_find(seen.begin(), seen.end()) != seen.end()) return largest;
  return sum / total;
}

uint64_t LoraEngineOf(std::string_view labels) {
  uint64_t hash = 0;
  Label label;
  while (!labels.empty() && NextLabel(labels, label) == LabelStep::kLabel) {
    if (label.name != "running_lora_adapters" && label.name != "waiting_lora_adapters" &&
        label.name != "max_lora" && !IsMirror(label.name)) {
      hash += HashOf(label);
    }
  }
  return hash;
}

}  // namespace fairway::sources::scrape
