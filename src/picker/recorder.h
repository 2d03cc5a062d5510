// Decisions in a file, a JSON object a line (routing/decision_json.h), to be replayed: what `--record`
// writes. FILE and, once it is full, FILE.1: what is older goes. Each begins with a line that says by which
// options was decided. A disk that is slow or full loses lines, counted, and holds no request.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "net/line_writer.h"
#include "routing/decision.h"
#include "scheduling/scheduler.h"

namespace fairway::picker {

// Thread-safe.
class DecisionRecorder final : public routing::DecisionSink {
 public:
  struct Options {
    std::string file;                // what is there already becomes FILE.1
    size_t max_bytes = 64u << 20;    // of each of the two
    size_t max_waiting = 32u << 20;  // of decisions that are not written yet
  };
  // The error names the file and the reason.
  static base::Result<std::unique_ptr<DecisionRecorder>> Open(const Options& options,
                                                              const scheduling::SchedulerOptions& decides_by);
  void Add(const std::shared_ptr<const routing::Decision>& decision) override;
  uint64_t lost() const { return writer_.lost(); }

 private:
  DecisionRecorder(const Options& options, std::function<bool(std::string_view)> sink)
      : writer_(-1, {.max_bytes = options.max_waiting, .sink = std::move(sink)}) {}

  net::LineWriter writer_;
};

}  // namespace fairway::picker
