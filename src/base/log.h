// One structured line per problem, as text for people or JSON for machines, on standard error.
//
//   log.Warn("scrape failed", {{"endpoint", "10.0.0.1:8000"}, {"error", "connection refused"}});
//   -> 2026-11-22T20:28:25.123Z WARN scrape failed endpoint=10.0.0.1:8000 error="connection refused"
//   -> {"time":"2026-11-22T20:28:25.123Z","level":"warn","msg":"scrape failed",
//       "endpoint":"10.0.0.1:8000",...}
//
// Nothing is logged per request unless the user asks for it. What can repeat many times a second goes through
// a LogLimit.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace fairway::base {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };
enum class LogFormat { kText, kJson };

// Values are text; numbers are formatted by the caller's std::to_string.
struct LogField {
  std::string_view key;
  std::string value;
};

// Thread-safe: a line is one write; level and format are set before threads start.
class Log {
 public:
  using Sink = std::function<void(std::string_view line)>;  // gets the line with its newline

  Log() = default;  // text, info and up, to standard error
  Log(LogLevel level, LogFormat format, Sink sink = {});

  void Debug(std::string_view message, std::initializer_list<LogField> fields = {}) const {
    Write(LogLevel::kDebug, message, std::span(fields.begin(), fields.size()));
  }
  void Info(std::string_view message, std::initializer_list<LogField> fields = {}) const {
    Write(LogLevel::kInfo, message, std::span(fields.begin(), fields.size()));
  }
  void Warn(std::string_view message, std::initializer_list<LogField> fields = {}) const {
    Write(LogLevel::kWarn, message, std::span(fields.begin(), fields.size()));
  }
  void Error(std::string_view message, std::initializer_list<LogField> fields = {}) const {
    Write(LogLevel::kError, message, std::span(fields.begin(), fields.size()));
  }
  // For levels and fields that are known at run time.
  void Write(LogLevel level, std::string_view message, std::span<const LogField> fields) const;
  bool Enabled(LogLevel level) const { return level >= level_; }

 private:
  LogLevel level_ = LogLevel::kInfo;
  LogFormat format_ = LogFormat::kText;
  Sink sink_;
};

// At most one line per `interval`: `if (limit.Allow(now, &suppressed)) log.Warn(...)`. Thread-safe.
class LogLimit {
 public:
  explicit LogLimit(Nanos interval) : interval_(interval) {}
  // True when a line may be written; `suppressed` is then how many were held back since the last one.
  bool Allow(Nanos now, uint64_t* suppressed = nullptr);

 private:
  Nanos interval_;
  std::atomic<Nanos> next_{0};
  std::atomic<uint64_t> held_{0};
};

}  // namespace fairway::base
