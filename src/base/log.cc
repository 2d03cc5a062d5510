#include "base/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <mutex>
#include <utility>

#include "base/clean_lines.h"
#include "base/strings.h"

namespace fairway::base {
namespace {

std::string Timestamp() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  std::array<char, 64> out{};
  std::snprintf(out.data(), out.size(), "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ", parts.tm_year + 1900,
                parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                now.tv_nsec / 1'000'000);
  return out.data();
}

bool NeedsQuotes(std::string_view value) {
  return value.empty() || value.find_first_of(" \"'=\\") != std::string_view::npos ||
         CleanText(value, value.size()) != value;
}

// `value` in quotes for people, of the kind that it has none of itself, so that a text which quotes another
// one is read as it was written. Control characters are escaped; what has both kinds of quotes is a JSON
// string.
void AppendQuoted(std::string& out, std::string_view value) {
  const bool plain = CleanText(value, value.size()) == value;
  if (plain && value.find('"') == std::string_view::npos) {
    out.append(1, '"').append(value).append(1, '"');
  } else if (plain && value.find('\'') == std::string_view::npos) {
    out.append(1, '\'').append(value).append(1, '\'');
  } else {
    AppendJsonString(out, value);
  }
}

// Where no sink was given: never waits for a reader, and so loses what nobody takes at once. A pipe that
// poll() calls writable takes 4 KiB whole; who serves gives a sink that keeps more (net/line_writer.h).
void WriteToStandardError(std::string_view line) {
  constexpr size_t kWhole = 4096;
  static std::mutex mutex;  // the stream is the process's: between look and write nobody of ours may fill it
  const std::lock_guard lock(mutex);
  while (!line.empty()) {
    pollfd ready{STDERR_FILENO, POLLOUT, 0};
    if (::poll(&ready, 1, 0) != 1) return;
    const ssize_t n = ::write(STDERR_FILENO, line.data(), std::min(line.size(), kWhole));
    if (n <= 0) return;
    line.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace

Log::Log(LogLevel level, LogFormat format, Sink sink)
    : level_(level), format_(format), sink_(std::move(sink)) {}

void Log::Write(LogLevel level, std::string_view message, std::span<const LogField> fields) const {
  if (!Enabled(level) || level == LogLevel::kOff) return;
  static constexpr std::array<std::string_view, 4> kUpper{"DEBUG", "INFO ", "WARN ", "ERROR"};
  static constexpr std::array<std::string_view, 4> kLower{"debug", "info", "warn", "error"};
  const auto index = static_cast<size_t>(level);
  std::string line;
  line.reserve(160 + message.size());
  if (format_ == LogFormat::kJson) {
    line += R"({"time":")";
    line += Timestamp();
    line += R"(","level":")";
    line += kLower[index];
    line += R"(","msg":)";
    AppendJsonString(line, message);
    for (const LogField& field : fields) {
      line += ',';
      AppendJsonString(line, field.key);
      line += ':';
      AppendJsonString(line, field.value);
    }
    line += '}';
  } else {
    line += Timestamp();
    line += ' ';
    line += kUpper[index];
    line += ' ';
    line += CleanLines(message);
    for (const LogField& field : fields) {
      line += ' ';
      line += field.key;
      line += '=';
      if (NeedsQuotes(field.value)) {
        AppendQuoted(line, field.value);
      } else {
        line += field.value;
      }
    }
  }
  line += '\n';
  if (sink_) return sink_(line);
  WriteToStandardError(line);
}

bool LogLimit::Allow(Nanos now, uint64_t* suppressed) {
  Nanos next = next_.load(std::memory_order_relaxed);
  if (now < next || !next_.compare_exchange_strong(next, now + interval_, std::memory_order_relaxed)) {
    held_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  const uint64_t held = held_.exchange(0, std::memory_order_relaxed);
  if (suppressed != nullptr) *suppressed = held;
  return true;
}

}  // namespace fairway::base
