#include "frontends/local/envoy_process.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "api/value.h"
#include "base/strings.h"
#include "frontends/local/child.h"
#include "frontends/local/envoy_admin.h"

namespace fairway::local {

namespace asio = boost::asio;

namespace {

// How the module marks what it prints (src/module).
constexpr std::string_view kExplanation = "fairway-explain: ";
constexpr std::string_view kOurs = "fairway: ";
constexpr std::string_view kLogFormat = "%l|%n|%s:%#|%v";
constexpr size_t kMaxLine = 16384;
constexpr size_t kTailLines = 8;
constexpr size_t kMaxKinds = 100;  // of log lines that are limited each for itself
constexpr base::Nanos kLineInterval = 5 * base::kSecond;
constexpr base::Nanos kReadyPoll = 30 * base::kMillisecond;

// What --log-format-escaped made of a message: C's escapes, of three octal digits where there is no letter.
std::string Unescaped(std::string_view text) {
  std::string out;
  const auto octal = [&text](size_t at) {
    const bool all = at + 3 <= text.size() && text[at] >= '0' && text[at] <= '3' &&
                     std::all_of(text.begin() + at + 1, text.begin() + at + 3,
                                 [](char c) { return c >= '0' && c <= '7'; });
    return all ? std::optional((text[at] - '0') * 64 + (text[at + 1] - '0') * 8 + (text[at + 2] - '0'))
               : std::nullopt;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
    } else if (const auto byte = octal(i + 1)) {
      out += static_cast<char>(*byte);
      i += 3;
    } else {
      const char c = text[++i];
      out += c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c;
    }
  }
  return out;
}

// One line in kLogFormat; other lines (a crash, the dynamic linker) have only a message.
struct EnvoyLine {
  std::string_view level = "error";
  std::string_view component;
  std::string_view source;
  std::string_view message;
};

EnvoyLine ParseLine(std::string_view line) {
  EnvoyLine parsed{.message = line};
  std::string_view rest = line;
  std::array<std::string_view, 3> fields;
  for (std::string_view& field : fields) {
    const size_t bar = rest.find('|');
    if (bar > 200) return parsed;  // none, too
    field = rest.substr(0, bar);
    rest.remove_prefix(bar + 1);
  }
  return {fields[0], fields[1], fields[2], rest};
}

unsigned DefaultConcurrency() { return std::clamp(std::thread::hardware_concurrency(), 1U, 4U); }

}  // namespace

struct EnvoyProcess::Impl : std::enable_shared_from_this<Impl> {
  Impl(net::Loop& loop, EnvoyProcessOptions options, EnvoyProcessEvents events, const base::Log& log)
      : loop(loop),
        options(std::move(options)),
        events(std::move(events)),
        log(log),
        ready_timer(loop),
        reap_timer(loop),
        pause_timer(loop),
        grace_timer(loop),
        pause(this->options.first_pause) {}

  std::string AdminFile() const { return options.directory + "/admin.txt"; }

  void Launch() {
    unlink(AdminFile().c_str());
    unlink((options.directory + "/admin.sock").c_str());  // of one that was killed
    const unsigned workers = options.concurrency > 0 ? options.concurrency : DefaultConcurrency();
    auto child =
        StartChild({options.binary, "-c", options.directory + "/bootstrap.json", "--concurrency",
                    std::to_string(workers), "--disable-hot-restart", "--admin-address-path", AdminFile(),
                    "--log-level", "warning", "--component-log-level", "dynamic_modules:info",
                    "--log-format-escaped", "--log-format", std::string(kLogFormat)});
    started_at = clock.Now();
    if (!child) {
      Ended(child.error().message);
      return;
    }
    pid = child->pid;
    tail.clear();
    pending.clear();
    output.emplace(loop.io(), child->output);
    Read();
    admin.reset();
    said_slow = false;
    ready_timer.Every(kReadyPoll, [this] { PollReady(); });
    // The end of its output tells that it ended; this is for a grandchild that keeps the pipe open.
    reap_timer.Every(base::kSecond, [this] { TryReap(); });
  }

  void Read() {
    output->async_read_some(asio::buffer(chunk), [self = shared_from_this(), generation = generation](
                                                     const boost::system::error_code& error, size_t n) {
      if (generation != self->generation) return;
      if (error) {
        self->reap_timer.Every(5 * base::kMillisecond, [impl = self.get()] { impl->TryReap(); });
        return;
      }
      self->TakeOutput(std::string_view(self->chunk.data(), n));
      self->Read();
    });
  }

  void TakeOutput(std::string_view text) {
    while (!text.empty()) {
      const size_t end = text.find('\n');
      const std::string_view piece = text.substr(0, end);
      if (pending.size() < kMaxLine) pending.append(piece.substr(0, kMaxLine - pending.size()));
      if (end == std::string_view::npos) return;
      TakeLine(pending);
      pending.clear();
      text.remove_prefix(end + 1);
    }
  }

  void TakeLine(const std::string& text) {
    if (text.starts_with(kExplanation)) {
      if (events.on_explanation) events.on_explanation(std::string_view(text).substr(kExplanation.size()));
      return;
    }
    EnvoyLine line = ParseLine(text);
    if (line.message.empty()) return;
    std::string message = line.component.empty() ? std::string(line.message) : Unescaped(line.message);
    line.message = message;
    if (line.message.starts_with(kOurs)) return TakeOurLine(line);
    std::replace(message.begin(), message.end(), '\n', ' ');
    if (line.level == "info") return;  // of what loads the module
    tail.emplace_back(line.message);
    if (tail.size() > kTailLines) tail.pop_front();
    if (stopping && line.level == "warning") return;  // that it was told to end is no news
    // Where it comes from in Envoy tells the kind; the text has the request's numbers in it.
    std::string kind(line.source);
    if (kinds.size() >= kMaxKinds && !kinds.contains(kind)) kind.clear();
    uint64_t held = 0;
    if (!kinds.try_emplace(kind, kLineInterval).first->second.Allow(clock.Now(), &held)) return;
    std::string what = "Envoy: " + std::string(line.message);
    if (held > 0) what += " (and " + std::to_string(held) + " like it)";
    const std::string component(line.component);
    // A part of the configuration that it does not take; it keeps what it had.
    const bool refused = line.source.starts_with("filesystem_subscription_impl");
    if (line.level == "warning" && !refused) {
      log.Warn(what, {{"component", component}});
    } else {
      log.Error(what, {{"component", component}});
    }
  }

  // Of the picker inside Envoy, which limits what repeats by itself.
  void TakeOurLine(const EnvoyLine& line) {
    const auto level = line.level == "info"      ? base::LogLevel::kInfo
                       : line.level == "warning" ? base::LogLevel::kWarn
                                                 : base::LogLevel::kError;
    std::string what(line.message.substr(kOurs.size()));
    std::vector<base::LogField> fields;
    const api::ParsedText parsed = what.starts_with('{') ? api::ParseJson(what) : api::ParsedText{};
    if (parsed.problems.empty() && parsed.documents.size() == 1) {
      for (const auto& entry : parsed.documents[0]->entries) {
        if (entry.key == "msg") {
          what = entry.value->text;
        } else if (entry.key != "time" && entry.key != "level") {  // which ours have, too
          fields.push_back({entry.key, entry.value->text});
        }
      }
    }
    if (level != base::LogLevel::kInfo) {
      tail.emplace_back(what);
      for (const base::LogField& field : fields)
        tail.back() += " " + std::string(field.key) + "=" + field.value;
      if (tail.size() > kTailLines) tail.pop_front();
    }
    log.Write(level, what, fields);
  }

  void PollReady() {
    if (admin == nullptr) {
      std::ifstream file(AdminFile());
      std::string address;
      if (!std::getline(file, address)) return;
      admin = std::make_unique<EnvoyAdmin>(loop, address);
    }
    if (!said_slow && clock.Now() - started_at > options.ready_timeout) {
      said_slow = true;
      log.Error(
          "Envoy runs but does not serve yet",
          {{"after", std::to_string((clock.Now() - started_at) / base::kSecond) + "s"}, {"said", Tail()}});
    }
    if (admin->busy()) return;
    admin->Get("/ready", [this](std::string_view) {
      admin->Get("/listeners", [this](std::string_view open) {
        const auto lines = std::count(open.begin(), open.end(), '\n');
        if (static_cast<size_t>(lines) >= options.listeners) Ready();
      });
    });
  }

  void Ready() {
    ready_timer.Cancel();
    if (stopping) return;
    if (ever_ready) log.Info("Envoy serves again", {{"pid", std::to_string(pid)}});
    ever_ready = true;
    if (events.on_ready) events.on_ready();
  }

  void TryReap() {
    if (pid < 0) return;
    if (const auto status = Reap(pid)) Ended(DescribeExit(*status));
  }

  std::string Tail() const {
    std::string text;
    for (const std::string& line : tail) text += (text.empty() ? "" : " / ") + line;
    return text;
  }

  void Ended(const std::string& how) {
    const auto keep = shared_from_this();  // on_failed may end with our owner gone
    const pid_t was = std::exchange(pid, -1);
    ++generation;
    DrainOutput();
    output.reset();
    ready_timer.Cancel();
    reap_timer.Cancel();
    grace_timer.Cancel();
    if (stopping) {
      Finish();
      return;
    }
    if (!ever_ready) {
      if (events.on_failed)
        events.on_failed("Envoy ended before it served (" + how + ")" + (tail.empty() ? "" : ": " + Tail()));
      return;
    }
    if (clock.Now() - started_at >= options.calm) pause = options.first_pause;
    log.Error("Envoy ended, it is started again", {{"pid", std::to_string(was)},
                                                   {"how", how},
                                                   {"in", std::to_string(pause / base::kMillisecond) + "ms"},
                                                   {"said", Tail()}});
    pause_timer.After(pause, [this] {
      ++restarts;
      Launch();
    });
    pause = std::min(2 * pause, options.longest_pause);
  }

  // What it wrote before it ended and we have not read: the reason, as a rule.
  void DrainOutput() {
    if (!output) return;
    boost::system::error_code error;
    output->non_blocking(true, error);
    for (int i = 0; i < 64 && !error; ++i) {
      const size_t n = output->read_some(asio::buffer(chunk), error);
      TakeOutput(std::string_view(chunk.data(), n));
    }
    if (!pending.empty()) TakeLine(std::exchange(pending, {}));
  }

  void Stop(std::function<void()> when_done) {
    stopping = true;
    done = std::move(when_done);
    ready_timer.Cancel();
    pause_timer.Cancel();
    if (pid < 0) {
      Finish();
      return;
    }
    kill(pid, SIGTERM);
    reap_timer.Every(5 * base::kMillisecond, [this] { TryReap(); });
    grace_timer.After(options.stop_grace, [this] {
      log.Warn("Envoy does not end, it is killed", {{"pid", std::to_string(pid)}});
      if (pid > 0) kill(pid, SIGKILL);
    });
  }

  void Finish() {
    if (auto call = std::exchange(done, nullptr)) call();
  }

  // Nothing of it may be left when its owner goes.
  void Kill() {
    ++generation;
    if (pid > 0) {
      kill(pid, SIGKILL);
      int status = 0;
      waitpid(pid, &status, 0);
      pid = -1;
    }
    output.reset();
    ready_timer.Cancel();
    reap_timer.Cancel();
    pause_timer.Cancel();
    grace_timer.Cancel();
    admin.reset();
  }

  net::Loop& loop;
  EnvoyProcessOptions options;
  EnvoyProcessEvents events;
  const base::Log& log;
  base::SystemClock clock;
  net::Timer ready_timer;
  net::Timer reap_timer;
  net::Timer pause_timer;
  net::Timer grace_timer;

  pid_t pid = -1;
  uint64_t generation = 0;  // of the child; reads of an earlier one are ignored
  uint64_t restarts = 0;
  base::Nanos started_at = 0;
  base::Nanos pause;
  bool ever_ready = false;
  bool said_slow = false;
  bool stopping = false;
  std::function<void()> done;

  std::optional<asio::posix::stream_descriptor> output;
  std::array<char, 8192> chunk;
  std::string pending;           // the beginning of a line
  std::deque<std::string> tail;  // its last words
  std::map<std::string, base::LogLimit, std::less<>> kinds;

  std::unique_ptr<EnvoyAdmin> admin;  // null until Envoy has said where it is
};

EnvoyProcess::EnvoyProcess(net::Loop& loop, EnvoyProcessOptions options, EnvoyProcessEvents events,
                           const base::Log& log)
    : impl_(std::make_shared<Impl>(loop, std::move(options), std::move(events), log)) {}

EnvoyProcess::~EnvoyProcess() { impl_->Kill(); }

void EnvoyProcess::Start() { impl_->Launch(); }
void EnvoyProcess::Stop(std::function<void()> done) { impl_->Stop(std::move(done)); }
void EnvoyProcess::ExpectListeners(size_t count) { impl_->options.listeners = count; }
pid_t EnvoyProcess::pid() const { return impl_->pid; }
uint64_t EnvoyProcess::restarts() const { return impl_->restarts; }

}  // namespace fairway::local
