// Whether a server is worth asking that requests wait for: one that kept kMostInARow questions in a row
// waiting for nothing is left alone (the circuit is open), for a pause that doubles from kFirstPause to
// kMostPause. After each pause one question is a probe; the first answer ends it.
//
//   const auto ask = breaker.MayAsk(now);
//   if (ask == CircuitBreaker::Ask::kNo) ...
//   if (breaker.Waited(ask, now)) ... it is left alone from now on
//   if (breaker.Answered()) ... it no longer is
//
// Owned by one thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace fairway::request {

class CircuitBreaker {
 public:
  static constexpr int kMostInARow = 3;
  static constexpr base::Nanos kFirstPause = base::kSecond;
  static constexpr base::Nanos kMostPause = 60 * base::kSecond;

  enum class Ask : uint8_t { kNo, kYes, kProbe };

  bool open() const { return open_; }
  base::Nanos pause() const { return pause_; }

  // kProbe: the outcome is told by one of the two below; kYes: where it says something of the server.
  Ask MayAsk(base::Nanos now) {
    if (!open_) return Ask::kYes;
    if (probing_ || now < again_at_) return Ask::kNo;
    probing_ = true;
    return Ask::kProbe;
  }
  // The question waited for nothing. True: the circuit opened. What was asked before it did says nothing new.
  bool Waited(Ask asked, base::Nanos now) {
    if (open_) {
      if (asked == Ask::kProbe) Pause(now, std::min(2 * pause_, kMostPause));
      return false;
    }
    if (++in_a_row_ < kMostInARow) return false;
    open_ = true;
    Pause(now, kFirstPause);
    return true;
  }
  // The server answered, whatever it said, or its machine did. True: the circuit was open, and no longer is.
  bool Answered() {
    const bool was_open = open_;
    *this = {};
    return was_open;
  }

 private:
  void Pause(base::Nanos now, base::Nanos pause) {
    pause_ = pause;
    again_at_ = now + pause;
    probing_ = false;
  }

  int in_a_row_ = 0;
  bool open_ = false;
  bool probing_ = false;
  base::Nanos pause_ = 0;
  base::Nanos again_at_ = 0;
};

}  // namespace fairway::request
