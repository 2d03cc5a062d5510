// What several series of one family say together. A server may be several engines (data-parallel ranks,
// models side by side), each with a series of its own on the one page:
//
//   copies    the same labels twice: the newest timestamp counts, else the first; values that can not be do
//   not mirrors   differ in the rank of a GPU alone (tp_rank, ...): one engine seen from each; the largest
//   counts parts     differ in `priority` alone: the one without is their sum; where there is none they are
//   added engines   differ in any other label: counts add up; KV use is the mean weighted by blocks, or the
//   largest
//             where these are not known of each engine
//
// An engine of which no usable value is there makes the whole signal unknown: added up without it, a full
// server would look empty.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fairway::sources::scrape {

// A series of a wanted family, as its line says it.
struct SeriesLine {
  std::string_view labels;  // after '{' up to and with '}'; empty without labels
  double value = 0;
  double timestamp = 0;  // minus infinity without one
  uint8_t rank = 0;      // place of its name among the alternatives for the signal
  bool usable = true;    // false: NaN, negative, no number, ...
};

// The lines of one signal. Reused from page to page.
class SeriesLines {
 public:
  // A page is untrusted: with more lines than this the signal is unknown.
  static constexpr size_t kMax = 1024;

  void Clear() {
    lines_.clear();
    broken_ = 0;
  }
  // False: too many.
  bool Add(const SeriesLine& line);
  // A series of the name at `rank` cannot be read, not even which one it is.
  void AddBroken(uint8_t rank) { broken_ |= uint64_t{1} << rank; }

  std::span<const SeriesLine> lines() const { return lines_; }
  bool broken(uint8_t rank) const { return (broken_ >> rank & 1) != 0; }

 private:
  std::vector<SeriesLine> lines_;
  uint64_t broken_ = 0;
};

// One engine's value.
struct EngineValue {
  double value = 0;
  std::string_view labels;  // of one of its series
};

// What is needed on the way; reused, so that pages cost no allocation.
struct SeriesScratch {
  struct Keyed {
    uint64_t engine = 0, part = 0, exact = 0;  // hashes of labels
    const SeriesLine* line = nullptr;
  };
  struct Capacity {
    uint64_t engine = 0;
    double timestamp = 0;
    std::optional<uint32_t> blocks;
    std::optional<uint32_t> block_size;
  };
  std::vector<Keyed> keyed;
  std::vector<EngineValue> engines;
  std::vector<Capacity> capacities;
};

// The engines' values by the first alternative name of which all engines' are usable, in scratch.engines.
// False: there is none.
bool ReadEngines(const SeriesLines& lines, SeriesScratch& scratch);

// Their sum.
std::optional<double> SumOf(const SeriesLines& lines, SeriesScratch& scratch);

// How cache shape is written: labels of an info metric, and labels that do not tell engines apart.
struct CapacityLabels {
  std::string_view block_size;
  std::string_view num_blocks;
  std::span<const std::string> selecting;
};

// Cache shape, by engine. Which labels tell engines apart is seen from `beside`, series of another signal of
// the same engines: the names that each line here and there has.
class Capacities {
 public:
  // The labels of `info`'s series hold the numbers, or the values of two families do; what is not there is
  // empty. Keeps its work in scratch.capacities.
  Capacities(const SeriesLines& beside, const SeriesLines& info, const SeriesLines& num_blocks,
             const SeriesLines& block_size, const CapacityLabels& labels, SeriesScratch& scratch);

  // Of all engines together. Absent: not known of one of them.
  std::optional<uint32_t> num_blocks() const;
  // Absent also where engines differ.
  std::optional<uint32_t> block_size() const;
  // The mean of `usage` weighted by blocks, the largest where they are not known. REQUIRES: not empty.
  double WeightedMean(std::span<const EngineValue> usage) const;
  // Labels whose text is no number, nor says that it is not known yet.
  uint32_t garbage() const { return garbage_; }

 private:
  static constexpr size_t kMaxNames = 16;
  void FindNames(std::span<const SeriesLine> mine, std::span<const SeriesLine> theirs,
                 std::span<const std::string> selecting);
  void AddInfo(const SeriesLine& line, const CapacityLabels& labels);
  void KeepOneOfEach();
  void KeepNamesOf(std::string_view labels);
  uint64_t EngineOf(std::string_view labels) const;

  SeriesScratch& scratch_;
  std::string_view names_[kMaxNames];
  size_t name_count_ = 0;
  uint32_t garbage_ = 0;
};

// The key of a LoRA series' engine: all labels but the lists.
uint64_t LoraEngineOf(std::string_view labels);

}  // namespace fairway::sources::scrape
