// What an explanation says of each step. It allocates, and runs only when somebody asks. For the .cc files of
// this room only.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "scheduling/config.h"
#include "scheduling/decide.h"
#include "scheduling/gather.h"

namespace fairway::scheduling {

// Begins a new explanation. `page_ages`: ms by candidate, kNoPage where there never was one.
void TellCandidates(const Config& config, const Program& program, const Columns& columns,
                    const Scratch::Impl& s, std::span<const uint32_t> page_ages, Explanation& explanation);
// The same with the ages that the cells say now.
void TellLive(const Config& config, const Program& program, const fleet::PoolSnapshot& pool,
              const Columns& columns, const Scratch::Impl& s, base::Nanos now, Explanation& explanation);
// Of the candidates of `columns`, as TellCandidates wants them.
void PageAges(const fleet::PoolSnapshot& pool, const Columns& columns, base::Nanos now, uint32_t* out);

// A profile begins; the next steps are its own.
void TellProfile(const Program& program, const Columns& columns, Explanation& explanation);
void TellFilter(const std::string& name, const Filter& filter, const Context& context,
                std::span<const uint32_t> in, std::span<const uint32_t> kept, Explanation& explanation);
// `score`: of in[i], not weighted.
void TellScorer(const std::string& name, float weight, const Columns& columns, std::span<const uint32_t> in,
                const float* score, Explanation& explanation);
// `total`: of in[i].
void TellTotals(std::span<const uint32_t> in, const float* total, Explanation& explanation);
// What the profile chose: it ends.
void TellChoice(const Columns& columns, const Choice& choice, Explanation& explanation);

// All profiles ran, and `primary` answers.
void TellEnd(const Config& config, const Program& primary, Explanation& explanation);

}  // namespace fairway::scheduling
