// Asks a render server of vLLM for the tokens of prompts, off the threads that requests are on: on a thread of
// its own (`tokens`), which starts with the first question.
//
//   TokenClient client(registry, log);
//   client.Ask({...}, loop, [](std::shared_ptr<const payload::PromptTokens> tokens) { ... });
//
// Bounded: kMaxOpen questions and kMaxOpenBytes of their bodies at once; who comes then gets no tokens, and is
// told at once. An answer is read as it comes, so that none holds up the others. It may be kMaxAnswer long
// and, where the prompt is text alone, no longer than such a prompt's tokens can be (AnswerBytes). What was
// read of all answers under way is kMaxAnswerBytes at most. Answers to the same question are kept, least
// recently used out, up to kMaxKeptBytes.
// A server that gives no answers is told of in the log once, and once when it is back. One that keeps requests
// waiting for nothing is left alone for a while (circuit_breaker.h), and they go without tokens at once.
// On the metrics page: fairway_token_questions_total{outcome}, fairway_token_circuits_open, and how long answers
// took.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/loop.h"
#include "payload/prompt_tokens.h"

namespace fairway::request {

class TokenClient {
 public:
  static constexpr size_t kMaxOpen = 32;
  static constexpr size_t kMaxOpenBytes = 64u << 20;
  static constexpr size_t kMaxKeptBytes = 64u << 20;
  static constexpr size_t kMaxAnswer = 16u << 20;
  static constexpr size_t kMaxAnswerBytes = 64u << 20;
  // A token for each byte of the question at most, of ten digits and ", "; and what a template adds.
  static constexpr size_t AnswerBytes(size_t question) { return (256u << 10) + 12 * question; }

  struct Question {
    std::string host;
    uint16_t port = 0;
    std::string path;
    std::string body;         // JSON
    base::Nanos timeout = 0;  // from Ask on
    bool media = false;       // it has images or the like, of which the answer tells more than tokens
  };
  // Null: they could not be had in time.
  using Answer = std::function<void(std::shared_ptr<const payload::PromptTokens>)>;

  // `registry` outlives it.
  TokenClient(base::Registry& registry, const base::Log& log);
  ~TokenClient();  // what is still asked gets no answer
  TokenClient(const TokenClient&) = delete;
  TokenClient& operator=(const TokenClient&) = delete;

  // Thread-safe. `answer` runs on `back`, later, once. `back` outlives this object, or runs no more.
  void Ask(Question question, net::Loop& back, Answer answer);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::request
