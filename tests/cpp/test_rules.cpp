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
}

template <typename T>
void all() {
  rap_rules<T>();
  no_message_is_zero<T>();
  absolute_form<T>();
  guards<T>();
}

int main() {
  all<float>();
  all<double>();
  return report();
}
