#include "cli/console.h"

#include <unistd.h>

#include <utility>

namespace fairway::cli {
namespace {

constexpr size_t kMaxOut = 4u << 20;  // explanations are some KB each

// The line that tells of lost ones, in the log's own format.
std::string Note(base::LogFormat format, uint64_t lost) {
  std::string line;
  const base::Log log(base::LogLevel::kWarn, format, [&line](std::string_view text) { line = text; });
  log.Warn("the log was not read for a while and lines of it are lost", {{"lines", std::to_string(lost)}});
  return line;
}

}  // namespace

void Show(std::FILE* to, std::string_view text) {
  const std::string clean = base::CleanLines(text);
  std::fwrite(clean.data(), 1, clean.size(), to);
}

Console::Console(base::LogFormat format)
    : format_(format),
      out_(STDOUT_FILENO, {.max_bytes = kMaxOut}),
      error_(STDERR_FILENO, {.note = [format](uint64_t lost) { return Note(format, lost); }}) {}

base::Log Console::MakeLog(base::LogLevel level) {
  return {level, format_, [this](std::string_view line) { error_.Write(line); }};
}

std::map<std::string, std::function<uint64_t()>> Console::lost() const {
  return {{"stdout", [this] { return out_.lost(); }}, {"stderr", [this] { return error_.lost(); }}};
}

}  // namespace fairway::cli
