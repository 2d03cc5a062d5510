// What filters, scorers and pickers are. A plugin is one file in plugins/: its type name, its parameters with
// defaults and checks, its formula with the source it comes from; its test beside it; one line in
// builtin_plugins.cc.
//
// Plugins work on positions 0 .. size-1 in columns that were gathered once for the decision. They are
// immutable, run on many threads at once, and neither allocate, lock, throw nor do I/O (Why is the exception:
// it runs only for an explanation).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "base/result.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

// Bits of Columns::lora for the adapter that the request asks for.
inline constexpr uint8_t kLoraRunning = 1;   // on the page: resident and in use
inline constexpr uint8_t kLoraWaiting = 2;   // on the page: queued requests wait for it, so it will be loaded
inline constexpr uint8_t kLoraRoom = 4;      // a slot is free to load it
inline constexpr uint8_t kLoraResident = 8;  // believed to be loaded, whether or not a request uses it now
// Needs no loading.
inline constexpr uint8_t kLoraHere = kLoraRunning | kLoraWaiting | kLoraResident;

// One value per candidate. Load is the ledger's (fleet/load.h) but where it says "page". queue, running,
// page_queue and kv_usage are filled for a request that meets a filter, or where reads_pages() says so.
struct Columns {
  std::span<const uint32_t> endpoint;  // number in the pool
  std::span<const float> requests;     // own open requests + others
  std::span<const float> queue;        // requests that are not in the engine's batch: requests - running
  std::span<const float> running;      // as on the page, but not more than requests
  std::span<const float> page_queue;   // waiting requests as on the page: what limits compare
  std::span<const float> kv_usage;     // 0..1
  std::span<const float> work;         // ms until what is there already is computed
  std::span<const float> prefill;      // ms for this request's own uncached prompt tokens
  std::span<const uint8_t> lora;       // kLora* bits
  uint8_t lora_bits = 0xff;            // those that somebody may have set: 0 is a pool without adapters
  size_t size() const { return endpoint.size(); }
};

struct Context {
  const Columns& columns;
  const Request& request;
  base::Random& random;
  // Requests that may not be shed came lately: there is somebody to protect from those that may.
  bool critical_traffic = true;
};

class Filter {
 public:
  virtual ~Filter() = default;
  virtual std::string_view type() const noexcept = 0;
  // Writes the positions of `in` that stay to `out` (room for in.size(); no overlap) in their order, and
  // returns how many. 0 means that the filter fails: what happens then is its node's affair.
  virtual size_t Apply(const Context& context, std::span<const uint32_t> in,
                       uint32_t* out) const noexcept = 0;
  // Why `position` was dropped, for people: "queue 60 >= 50".
  virtual std::string Why(const Context& context, uint32_t position) const = 0;
};

class Scorer {
 public:
  virtual ~Scorer() = default;
  virtual std::string_view type() const noexcept = 0;
  virtual bool reads_pages() const noexcept { return true; }
  // out[i] is the score of position in[i]. What is beyond [0, 1] counts as 0 or 1, what is no number as 0.
  virtual void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept = 0;
};

class Picker {
 public:
  virtual ~Picker() = default;
  virtual std::string_view type() const noexcept = 0;
  // False also says that it chooses as many as it may: what it left open would be filled by queues.
  virtual bool reads_pages() const noexcept { return true; }
  // Chooses up to out.size() distinct positions of `in`, best first; scores[i] is the weighted total of
  // in[i]. Returns how many. REQUIRES: in is not empty.
  virtual size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
                      std::span<uint32_t> out) const noexcept = 0;
};

// The parameters of one plugin, by name. A factory takes what it knows with a default and a range; what is
// left over or out of range is reported by Check().
class Parameters {
 public:
  Parameters() = default;
  explicit Parameters(std::map<std::string, double> values) : values_(std::move(values)) {}
  double Number(const std::string& name, double default_value, double min, double max);
  // The first thing that was wrong: a value out of its range, or a name nobody took.
  base::Result<void> Check(std::string_view type) const;

 private:
  std::map<std::string, double> values_;
  std::vector<std::string> taken_;
  std::string problem_;
};

template <typename Plugin>
struct PluginType {
  std::string_view type;
  std::unique_ptr<Plugin> (*make)(Parameters&);
};

// Everything built in, by type name (builtin_plugins.cc).
std::span<const PluginType<Filter>> BuiltinFilters();
std::span<const PluginType<Scorer>> BuiltinScorers();
std::span<const PluginType<Picker>> BuiltinPickers();

base::Result<std::unique_ptr<Filter>> MakeFilter(std::string_view type, Parameters parameters = {});
base::Result<std::unique_ptr<Scorer>> MakeScorer(std::string_view type, Parameters parameters = {});
base::Result<std::unique_ptr<Picker>> MakePicker(std::string_view type, Parameters parameters = {});

}  // namespace fairway::scheduling
