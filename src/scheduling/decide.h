// The decision itself: a function of what was seen (gather.h), the program and the random numbers. For the
// .cc files of this room only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "scheduling/gather.h"
#include "scheduling/program.h"

namespace fairway::scheduling {

// What refused, and whether it looked at load, which changes.
struct Refused {
  Refusal refusal = Refusal::kFilters;
  std::string_view by;  // the plugin
  bool by_load = false;
};

struct Choice {
  std::array<uint32_t, kMaxChoices> positions{};  // best first
  size_t count = 0;
  Rung rung = Rung::kFresh;
  bool shed = false;
  Refused refused;  // where it is shed
};

// `s` lends memory for lists and scores. Live columns that pages tell are there when program.reads says so,
// and always for a request that may be shed.
Choice Decide(const Program& program, const SchedulerOptions& options, const Picture& picture,
              const Context& context, Scratch::Impl& s, Explanation* explanation) noexcept;

// The header that tells what this profile chose: the handler's, or what a plugin beside it has. REQUIRES: the
// config has a handler.
ToldIn TellOf(const Config& config, size_t profile) noexcept;

// By the one profile of the config, or by several as its handler says. Fills what `outcome` says of the
// choice, but for places. `asks_admitters`: that they let the request in is not known yet.
Choice DecideAll(const Config& config, const Program& program, const SchedulerOptions& options,
                 const Picture& picture, const Context& context, bool asks_admitters, Scratch::Impl& s,
                 Outcome& outcome, Explanation* explanation) noexcept;

}  // namespace fairway::scheduling
