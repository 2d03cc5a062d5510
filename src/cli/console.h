// Standard output and error of a program that serves: nothing that it says can stop it (net/line_writer.h).
#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/clean_lines.h"
#include "base/log.h"
#include "net/line_writer.h"

namespace fairway::cli {

// On a stream of a program that does not serve. What a terminal would obey, and may stand in a file or its name, goes.
void Show(std::FILE* to, std::string_view text);

// Lives longer than all that writes. Thread-safe.
class Console {
 public:
  explicit Console(base::LogFormat format);

  // Text with its newline; without what a terminal would obey.
  void Print(std::string_view text) { out_.Write(base::CleanLines(text)); }
  void PrintError(std::string_view text) { error_.Write(base::CleanLines(text)); }
  base::Log MakeLog(base::LogLevel level);

  // Calls whose text nobody took, by stream: for the metrics page.
  std::map<std::string, std::function<uint64_t()>> lost() const;

 private:
  const base::LogFormat format_;
  net::LineWriter out_;
  net::LineWriter error_;
};

}  // namespace fairway::cli
