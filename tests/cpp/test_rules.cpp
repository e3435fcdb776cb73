// The scalar rules of rules.h against values worked out by hand.
#include <initializer_list>
#include <limits>

#include "check.h"
#include "rules.h"

using namespace rapkernels;

template <typename T>
void rap_rules() {
  // Z+ = 3, Z- = 1: rho = 1/4.
  const Quotient<T> linear = Rap::quotient(T(6), T(3), T(1));
  CHECK_NEAR(linear.positive, 2.0, 0);
  CHECK_NEAR(linear.negative, 1.5, 0);
  const Quotient<T> opposing = Rap::quotient(T(-6), T(3), T(1));
  CHECK_NEAR(opposing.positive, -2.0, 0);
  CHECK_NEAR(opposing.negative, -1.5, 0);

  const Quotient<T> conv = RapConv::quotient(T(6), T(3), T(1));
  CHECK_NEAR(conv.positive, linear.positive, 0);
  CHECK_NEAR(conv.negative, linear.negative, 0);
  const Quotient<T> negative = RapConv::quotient(T(-6), T(3), T(1));
  CHECK_NEAR(negative.positive, 0.0, 0);
  CHECK_NEAR(negative.negative, -7.5, 0);
}

template <typename T>
void no_message_is_zero() {
  for (const T r : {T(1), T(-1), T(0)}) {
    for (const Quotient<T>& q : {Rap::quotient(r, T(0), T(0)), RapConv::quotient(r, T(0), T(0))}) {
      CHECK(q.positive == T(0));
      CHECK(q.negative == T(0));
    }
    CHECK(Rap::quotient(r, T(2), T(0)).negative == T(0));
    CHECK(RapConv::quotient(r, T(0), T(2)).positive == T(0));
    CHECK(safe_quotient(r, T(0)) == T(0));
    CHECK(safe_quotient(r, Guard<T>::tiny) == T(0));
  }
  CHECK(safe_quotient(T(3), T(-2)) == T(-1.5));
}

template <typename T>
void rules_without_shift() {
  // Z+ = 3, Z- = 1, b = 2: z + b = 4; the bias and what is added to the sum take their part of R
  // = 6.
  const T half = T(0.5);
  const Stabilized<T> epsilon = stabilized(T(6), T(4), T(2), T(2));
  CHECK_NEAR(epsilon.quotient, 1.0, 0);
  CHECK_NEAR(epsilon.absorbed, 4.0, 0);
  const Stabilized<T> below = stabilized(T(6), T(-1), T(-1), half);
  CHECK_NEAR(below.quotient, -4.0, 0);
  CHECK_NEAR(below.absorbed, 6.0, 0);
  CHECK_NEAR(stabilized(T(6), T(0), T(0), half).quotient, 12.0, 0);
  const Stabilized<T> nothing = stabilized(T(6), T(0), T(0), T(0));
  CHECK_NEAR(nothing.quotient, 0.0, 0);
  CHECK_NEAR(nothing.absorbed, 6.0, 0);

  const Shares<T> absolute = Absolute<T>(nullptr).shares(T(6), T(3), T(1), T(2));
  CHECK_NEAR(absolute.positive, 1.5, 0);
  CHECK_NEAR(absolute.negative, 1.5, 0);
  CHECK_NEAR(absolute.absorbed, 0.0, 0);

  // Above 0: 2 * 3 - 1 + 2 * 1 + 1 = 8.
  const double gamma_parameters[] = {1, 1};
  const Gamma<T> gamma(gamma_parameters);
  const Shares<T> above = gamma.shares(T(16), T(3), T(1), T(1));
  CHECK_NEAR(above.positive, 4.0, 0);
  CHECK_NEAR(above.negative, -2.0, 0);
  CHECK_NEAR(above.absorbed, 16.0 - 4.0 * 3 + 2.0 * 1, 0);
  // Below 0, with a bias of the other sign: 1 - 2 * 3 + 1 - 1 = -5.
  const Shares<T> under = gamma.shares(T(10), T(1), T(3), T(1));
  CHECK_NEAR(under.positive, -2.0, 0);
  CHECK_NEAR(under.negative, 4.0, 0);
  CHECK_NEAR(under.absorbed, 10.0 + 2.0 * 1 - 4.0 * 3, 0);
  const Shares<T> zero = gamma.shares(T(10), T(2), T(3), T(1));
  CHECK_NEAR(zero.positive, 0.0, 0);
  CHECK_NEAR(zero.negative, 0.0, 0);
  CHECK_NEAR(zero.absorbed, 10.0, 0);

  // 2 * 12 / (3 + 2 + 1) and -12 / (1 + 1): the positive bias is with the positive messages.
  const double alpha_beta_parameters[] = {2, 1, 1};
  const Shares<T> both = AlphaBeta<T>(alpha_beta_parameters).shares(T(12), T(3), T(1), T(2));
  CHECK_NEAR(both.positive, 4.0, 0);
  CHECK_NEAR(both.negative, -6.0, 0);
  CHECK_NEAR(both.absorbed, 12.0 - 4.0 * 3 + 6.0 * 1, 0);
}

template <typename T>
void absolute_form() {
  // w x = {2, -0.5}: z = 1.5, A = 2.5.
  const Quotient<T> z = split_absolute(T(1.5), T(2.5));
  CHECK_NEAR(z.positive, 2.0, 0);
  CHECK_NEAR(z.negative, 0.5, 0);
  // What is left of a cancellation is rounding, not a message.
  const T one = T(1);
  CHECK(split_absolute(one, one * (one + Guard<T>::epsilon)).negative == T(0));
  CHECK(split_absolute(-one, one * (one + Guard<T>::epsilon)).positive == T(0));
  CHECK(split_absolute(T(0), T(0)).positive == T(0));
}

template <typename T>
void guards() {
  const T infinity = std::numeric_limits<T>::infinity();
  const T nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(finite_or_zero(infinity) == T(0));
  CHECK(finite_or_zero(-infinity) == T(0));
  CHECK(finite_or_zero(nan) == T(0));
  CHECK(finite_or_zero(Guard<T>::largest) == Guard<T>::largest);
  CHECK(shifted(T(0), T(5)) == T(0));
  CHECK(shifted(T(2), T(5)) == T(-3));
  CHECK(AbsoluteShare::weight(T(-2)) == T(2));
  CHECK(RatioShare::weight(T(-2)) == T(-2));
  CHECK(PositiveShare::weight(T(-2)) == T(1e-9));
  CHECK(PositiveShare::weight(T(2)) == T(2) + T(1e-9));
  CHECK(stabilizing(T(-2), T(0.5)) == T(-0.5));
  CHECK(stabilizing(T(0), T(0.5)) == T(0.5));
}

template <typename T>
void vectors() {
  // v = (3, -4), R = 50: G = v R / 25, squares 9 and 16 of 25.
  const double norm = 5;
  const double rounding = 64 * Guard<T>::epsilon;
  CHECK_NEAR(Gradient::entry(T(-4 / norm), T(Gradient::amount(50, norm))), -8, rounding);
  CHECK_NEAR(Squares::entry(T(-4 / norm), T(Squares::amount(50, norm))), 32, rounding);
  const double tiny = Guard<T>::tiny;
  CHECK(!carries_vector<T>(0));
  CHECK(!carries_vector<T>(tiny * tiny));
  CHECK(carries_vector<T>(4 * tiny * tiny));
  CHECK(!carries_vector<T>(std::numeric_limits<double>::infinity()));
}

template <typename T>
void all() {
  rap_rules<T>();
  no_message_is_zero<T>();
  rules_without_shift<T>();
  absolute_form<T>();
  guards<T>();
  vectors<T>();
}

int main() {
  all<float>();
  all<double>();
  return report();
}
