// Standard output and error of a program that serves: nothing that it says can stop it (net/line_writer.h).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/log.h"
#include "net/line_writer.h"

namespace fairway::cli {

// Lives longer than all that writes. Thread-safe.
class Console {
 public:
  explicit Console(base::LogFormat format);

  // Text with its newline, as it is.
  void Print(std::string_view text) { out_.Write(text); }
  void PrintError(std::string_view text) { error_.Write(text); }
  base::Log MakeLog(base::LogLevel level);

  // Calls whose text nobody took, by stream: for the metrics page.
  std::map<std::string, std::function<uint64_t()>> lost() const;

 private:
  const base::LogFormat format_;
  net::LineWriter out_;
  net::LineWriter error_;
};

}  // namespace fairway::cli
