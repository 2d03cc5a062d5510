#include "replay/distribution.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>

#include "api/scalars.h"
#include "replay/fields.h"

namespace fairway::replay {

using api::Node;
using api::ObjectReader;

double SampleNormal(base::Random& random) {
  const double radius = std::sqrt(-2 * std::log(1 - random.NextDouble()));
  return radius * std::cos(2 * std::numbers::pi * random.NextDouble());
}

double SampleExponential(base::Random& random, double mean) {
  return -mean * std::log(1 - random.NextDouble());
}

Distribution Distribution::Fixed(double value) {
  Distribution out;
  out.a_ = value;
  return out;
}

Distribution Distribution::Uniform(double low, double high) {
  Distribution out;
  out.kind_ = Kind::kUniform;
  out.a_ = low;
  out.b_ = high;
  return out;
}

double Distribution::mean() const {
  if (kind_ == Kind::kUniform) return (a_ + b_) / 2;
  if (kind_ != Kind::kValues) return a_;
  double sum = 0, before = 0;
  for (size_t i = 0; i < values_.size(); ++i) {
    sum += values_[i] * (cumulative_[i] - before);
    before = cumulative_[i];
  }
  return sum / before;
}

double Distribution::Sample(base::Random& random) const {
  double value = a_;
  switch (kind_) {
    case Kind::kFixed:
      break;
    case Kind::kUniform:
      value = a_ + (b_ - a_) * random.NextDouble();
      break;
    case Kind::kLognormal: {
      const double variance = std::log1p(b_ * b_ / (a_ * a_));
      value = std::exp(std::log(a_) - variance / 2 + std::sqrt(variance) * SampleNormal(random));
      break;
    }
    case Kind::kNormal:
      value = a_ + b_ * SampleNormal(random);
      break;
    case Kind::kExponential:
      value = SampleExponential(random, a_);
      break;
    case Kind::kValues: {
      const double at = random.NextDouble() * cumulative_.back();
      const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), at);
      value = values_[std::min<size_t>(static_cast<size_t>(found - cumulative_.begin()), values_.size() - 1)];
      break;
    }
  }
  return std::clamp(value, min_, max_);
}

uint32_t Distribution::SampleCount(base::Random& random) const {
  return static_cast<uint32_t>(std::clamp(std::round(Sample(random)), 1.0, 4e9));
}

void Distribution::ReadMoments(const Node& node, Kind kind, double min, double max) {
  ObjectReader moments(node);
  kind_ = kind;
  const bool logarithmic = kind == Kind::kLognormal;
  a_ = api::ReadNumber(moments.Require("mean"), logarithmic ? std::max(min, 1e-9) : min, max).value_or(1);
  b_ = api::ReadNumber(moments.Require("stddev"), 0, max).value_or(0);
  moments.Finish();
}

void Distribution::ReadValues(ObjectReader& object, double min, double max) {
  constexpr size_t kMaxValues = 100'000;
  kind_ = Kind::kValues;
  for (const Node& item : object.Get("values").Items(1, kMaxValues))
    values_.push_back(api::ReadNumber(item, min, max).value_or(min));
  const Node weights = object.Get("weights");
  double sum = 0;
  for (const Node& item : weights.Items(1, kMaxValues))
    cumulative_.push_back(sum += api::ReadNumber(item, 0, 1e12).value_or(0));
  if (!weights.present())
    while (cumulative_.size() < values_.size()) cumulative_.push_back(sum += 1);
  if (cumulative_.size() != values_.size())
    weights.Error("want as many weights as values (" + std::to_string(values_.size()) + ")");
  if (sum <= 0) weights.Error("one weight at least must be above 0");
}

Distribution Distribution::Read(const Node& node, double min, double max, const Distribution& otherwise) {
  if (!node.present()) return otherwise;
  if (!node.Is(api::Value::Kind::kMap)) {
    const auto value = api::ReadNumber(node, min, max);
    return value ? Fixed(*value) : otherwise;
  }
  ObjectReader object(node);
  Distribution out;
  constexpr std::array<std::string_view, 5> kNames = {"uniform", "lognormal", "normal", "exponential",
                                                      "values"};
  size_t given = 0;
  for (const std::string_view name : kNames) given += object.Get(name).present() ? 1 : 0;
  if (given != 1) {
    node.Error("want a number or exactly one of uniform, lognormal, normal, exponential, values");
  } else if (const Node range = object.Get("uniform"); range.present()) {
    const std::vector<Node> ends = range.Items(2, 2);
    if (ends.size() == 2) {
      out = Uniform(api::ReadNumber(ends[0], min, max).value_or(min),
                    api::ReadNumber(ends[1], min, max).value_or(max));
      if (out.a_ > out.b_) range.Error("the first number is larger than the second");
    }
  } else if (const Node lognormal = object.Get("lognormal"); lognormal.present()) {
    out.ReadMoments(lognormal, Kind::kLognormal, min, max);
  } else if (const Node normal = object.Get("normal"); normal.present()) {
    out.ReadMoments(normal, Kind::kNormal, min, max);
  } else if (const Node exponential = object.Get("exponential"); exponential.present()) {
    out.kind_ = Kind::kExponential;
    out.a_ = api::ReadNumber(exponential, min, max).value_or(1);
  } else {
    out.ReadValues(object, min, max);
  }
  object.Get("weights");
  out.min_ = api::ReadNumber(object.Get("min"), min, max).value_or(min);
  out.max_ = api::ReadNumber(object.Get("max"), min, max).value_or(max);
  if (out.min_ > out.max_) node.Error("min is larger than max");
  object.Finish();
  const bool usable =
      out.min_ <= out.max_ &&
      (out.kind_ != Kind::kValues ||
       (!out.values_.empty() && out.cumulative_.size() == out.values_.size() && out.cumulative_.back() > 0));
  return usable ? out : otherwise;
}

Popularity::Popularity(uint32_t count, double exponent) {
  double sum = 0;
  for (uint32_t i = 1; i <= count; ++i) cumulative_.push_back(sum += std::pow(i, -exponent));
}

uint32_t Popularity::Draw(base::Random& random) const {
  if (cumulative_.empty()) return 0;
  const double at = random.NextDouble() * cumulative_.back();
  const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), at);
  return std::min<uint32_t>(static_cast<uint32_t>(found - cumulative_.begin()), count() - 1);
}

}  // namespace fairway::replay
