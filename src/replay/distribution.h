// A number that varies: lengths of prompts and answers, think times, turns.
#pragma once

#include <cstdint>
#include <vector>

#include "api/decode.h"
#include "base/random.h"

namespace fairway::replay {

// Immutable once read; the randomness is handed in.
class Distribution {
 public:
  Distribution() = default;  // 0
  static Distribution Fixed(double value);
  static Distribution Uniform(double low, double high);

  double Sample(base::Random& random) const;
  // At least 1.
  uint32_t SampleCount(base::Random& random) const;
  double mean() const;  // without what min and max cut

  // A number (always this one), or one of
  //   {uniform: [LOW, HIGH]}
  //   {lognormal: {mean: M, stddev: S}}     mean and deviation of the values, not of their logarithms
  //   {normal: {mean: M, stddev: S}}
  //   {exponential: MEAN}
  //   {values: [...], weights: [...]}       as observed; weights may be left out
  // each with `min` and `max` beside it. `otherwise` where it is absent or wrong, which is reported.
  static Distribution Read(const api::Node& node, double min, double max, const Distribution& otherwise);

 private:
  enum class Kind { kFixed, kUniform, kLognormal, kNormal, kExponential, kValues };
  void ReadValues(api::ObjectReader& object, double min, double max);
  void ReadMoments(const api::Node& node, Kind kind, double min, double max);

  Kind kind_ = Kind::kFixed;
  double a_ = 0, b_ = 0;  // value; low, high; mean, deviation
  double min_ = -1e300, max_ = 1e300;
  std::vector<double> values_;
  std::vector<double> cumulative_;  // of the weights, as long as values_
};

// Which of `count` things: all alike, or by Zipf's law, the i-th of them 1 / i^exponent.
class Popularity {
 public:
  Popularity() = default;
  Popularity(uint32_t count, double exponent);  // 0: all alike
  uint32_t Draw(base::Random& random) const;
  uint32_t count() const { return static_cast<uint32_t>(cumulative_.size()); }

 private:
  std::vector<double> cumulative_;
};

// Standard normal, by Box and Muller.
double SampleNormal(base::Random& random);
double SampleExponential(base::Random& random, double mean);

}  // namespace fairway::replay
