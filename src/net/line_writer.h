// Text for a descriptor that perhaps nobody reads: a pipe to a pager, a terminal that was stopped with ^S,
// the blocking log driver of a container.
//
// A write to such a descriptor waits for as long as its reader likes, and who writes may be a worker, the
// control loop or the thread that shall hear SIGTERM. O_NONBLOCK is no way out: it belongs to the open file,
// which we share with our parent and its other children (the shell that reads the same terminal, `make`), and
// would make their reads and writes fail. So one thread waits instead of all, behind a queue with a bound;
// what does not fit is lost and counted, and once somebody reads again a line says how many were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace fairway::net {

struct LineWriterOptions {
  size_t max_bytes = 1u << 20;  // that wait to be written
  // What is written once somebody reads again and lines were lost; with its newline. Empty: nothing is.
  // Called on the writer's thread.
  std::function<std::string(uint64_t lost)> note = {};
  base::Nanos grace = 500 * base::kMillisecond;  // at the end, for what still waits
  // Gets the texts instead of the descriptor, on the writer's thread; false: it was not written. It may wait.
  // Called by one thread at a time, at most until `grace` after the writer is gone, or as long as it waits.
  std::function<bool(std::string_view text)> sink = {};
};

class LineWriter {
 public:
  // Does not own the descriptor. Throws std::system_error when there can be no thread.
  explicit LineWriter(int descriptor, LineWriterOptions options = {});
  // Waits until all is written, at most `grace`.
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  // Thread-safe. Takes one or several whole lines; up to 4 KiB of them stay together whoever else writes
  // there. Never waits for a reader.
  void Write(std::string_view lines);
  // The same for a text that is made on the writer's thread. `bytes`: about what it takes until then.
  void WriteLater(std::function<std::string()> make, size_t bytes);
  // Calls of Write whose text was not, or not wholly, written. Thread-safe.
  uint64_t lost() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fairway::net
