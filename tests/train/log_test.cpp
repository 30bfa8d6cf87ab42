// The log of a run and its picture.
#include "rapt/train/log.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "io/io_support.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;
using train::TrainingLog;

struct Report {
  index_t step;
  double loss, lr = 0.001, grad_norm = 1.5;
  index_t tokens = 64;
  double seconds = 0.25, scale = 1;
  bool skipped = false;
};

TEST(TrainingLog, WritesALineAStepAndDropsWhatAResumedRunWillRepeat) {
  const ScratchFolder folder;
  const fs::path path = folder / "log.jsonl";
  {
    TrainingLog log(path, 0);
    for (index_t step = 1; step <= 5; ++step)
      log.step(Report{step, 6.0 / static_cast<double>(step)});
    log.validation(4, 1.75, 100, 0.5);
    log.step(Report{.step = 6, .loss = std::numeric_limits<double>::infinity(), .skipped = true});
  }
  EXPECT_THAT(read_file(path),
              HasSubstr("{\"step\":3,\"loss\":2,\"lr\":0.001,\"grad_norm\":1.5,\"tokens\":64,"
                        "\"seconds\":0.25,\"scale\":1}\n"));
  EXPECT_THAT(read_file(path), HasSubstr("{\"step\":6,\"loss\":null"));
  EXPECT_THAT(read_file(path), HasSubstr("\"skipped\":true}\n"));
  // What a killed program leaves at the end.
  write_file(path, read_file(path) + "{\"step\":7,\"lo");
  { TrainingLog log(path, 4); }
  const auto curves = train::read_training_log(path);
  ASSERT_EQ(curves.loss.size(), 4u);
  EXPECT_EQ(curves.loss[3].step, 4);
  ASSERT_EQ(curves.validation.size(), 1u);
  EXPECT_EQ(curves.validation[0].value, 1.75);
  EXPECT_THAT(read_file(path), Not(HasSubstr("\"step\":5")));
}

TEST(TrainingLog, NamesTheLineThatIsBroken) {
  const ScratchFolder folder;
  write_file(folder / "log", "{\"step\":1,\"loss\":2}\nnonsense\n");
  EXPECT_THAT([&] { train::read_training_log(folder / "log"); },
              ThrowsMessage<FormatError>(HasSubstr("log:2")));
}

TEST(LossCurve, IsAPictureOfAnyLog) {
  train::TrainingCurves curves;
  EXPECT_THAT(train::loss_curve_svg(curves, "empty"), HasSubstr("</svg>"));
  for (index_t step = 1; step <= 5000; ++step)
    curves.loss.push_back({step, 1 + 6 / static_cast<double>(step)});
  curves.validation = {{2500, 1.5}, {5000, 1.25}};
  const std::string svg = train::loss_curve_svg(curves, "a < b & c");
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_LT(svg.size(), 40'000u);  // thinned
  curves.loss = {{1, 2.5}};
  curves.validation.clear();
  EXPECT_THAT(train::loss_curve_svg(curves, "one"), Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace rapt::test
