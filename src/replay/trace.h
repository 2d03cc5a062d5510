// Published traces, read as they are:
//
//   {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}   a line each
//     Mooncake's (FAST'25): milliseconds; each id stands for 512 tokens of the prompt, and equal ids for
//     equal prefixes up to there
//   TIMESTAMP,ContextTokens,GeneratedTokens
//   2023-11-16 18:17:03.9799600,4808,10
//     Azure's LLM inference traces of 2023 and 2024
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/manifests.h"
#include "replay/workload.h"

namespace fairway::replay {

constexpr size_t kMaxTraceRequests = 20'000'000;

// Does it look like one of the above? Asked of the first line that is not empty.
bool IsTrace(std::string_view text);

// Null with an error for each bad line (the first few), with file and line.
std::shared_ptr<const Trace> ParseTrace(std::string_view text, const std::string& file,
                                        std::vector<api::Problem>& problems);

}  // namespace fairway::replay
